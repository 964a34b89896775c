"""What goes with exported weights: tokenizer, chat template, picture processing, stop tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from convert.files import read_json
from spatialllm_jax.data import chat
from spatialllm_jax.data import tokenizer as tokenizers
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference.prompts import ChatSettings
from spatialllm_jax.models.config import ModelConfig, VisionConfig

_CARRIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json",
            "merges.txt", "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
            "chat.json")
_BICUBIC = 3  # PIL's number


@dataclass(frozen=True)
class ImageToken:
    """The token whose places visual tokens take.

    Attributes:
        text, id: the token.
        old_rows: rows of the vocabulary's matrices.
        rows: rows that they need to have for it.
        said: where it comes from, a sentence for the log.
    """

    text: str
    id: int
    old_rows: int
    rows: int
    said: str


def image_token(source: Path, text: str, given: int | None, rows: int, multiple: int | None) -> ImageToken:
    """Chooses the image token: the id given, else the tokenizer's own `text`, else the next free id.

    Args:
        source: model folder.
        given: id from the command line.
        rows: rows of the model's embedding.
        multiple: rows are padded to a multiple of this when the token lies beyond them; None if it needs no row.

    Raises:
        UserError: the id given has no row, or is another one than the tokenizer's.
    """
    backend = _backend(source)
    own: int | None = backend.token_to_id(text) if backend is not None else None
    token: int
    if given is not None:
        if given < 0 or (multiple is not None and given >= rows):
            raise UserError(f"--image-token-id {given} is not one of the vocabulary's {rows} rows; leave it out to "
                            "have rows added")
        if own is not None and own != given:
            raise UserError(f"--image-token-id {given}: the tokenizer's {text} is {own}; leave the flag out")
        token, said = given, f"image token {text} = {given}, as given"
    elif own is not None:
        token, said = own, f"image token {text} = {own}, the tokenizer's own"
    elif backend is not None:
        backend.add_special_tokens([_added(text)])
        token = cast(int, backend.token_to_id(text))
        said = f"image token {text} = {token}, added to the tokenizer"
    else:
        token, said = rows, f"image token {text} = {rows}, the first id beyond the vocabulary (there is no tokenizer)"
    if multiple is None or token < rows:
        return ImageToken(text, token, rows, rows, said)
    new = -(-(token + 1) // multiple) * multiple
    said += (f"; embedding and head go from {rows} to {new} rows, a multiple of {multiple} (--pad-vocab), each new row "
             "the mean of the old")
    return ImageToken(text, token, rows, new, said)


def _added(text: str) -> AddedToken:
    return AddedToken(text, special=True, normalized=False)


def _backend(source: Path) -> Backend | None:
    return tokenizers.load(source).backend if (source / tokenizers.FILE).is_file() else None


def write_text(source: Path, out: Path, token: ImageToken | None, settings: ChatSettings | None) -> list[str]:
    """Copies the tokenizer's files, with the image token and the chat template that the model was trained on.

    Args:
        token: to be known to the tokenizer; None leaves it as it is.
        settings: None leaves chat template and stop tokens as they are.

    Returns:
        sentences for the log.
    """
    for name in _CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    backend = _backend(source)
    if backend is None:
        return ["no tokenizer.json in the model folder: the export has none"]
    file = out / "tokenizer_config.json"
    config: dict[str, Any] = read_json(file) if file.is_file() else {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if not file.is_file() or token is not None or settings is not None:
        # Fast tokenizers also give token_type_ids, which no Llama takes.
        config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if token is not None:
        _add(backend, config, token, out)
    said = []
    if settings is not None:
        _write_generation(backend, config, token, settings, out)
        if config.pop("chat_template", None) or (out / "chat_template.json").is_file():
            said.append("the tokenizer's own chat template is replaced by that of chat.json")
        (out / "chat_template.json").unlink(missing_ok=True)
        (out / "chat_template.jinja").write_text(chat_template(settings, token.text if token is not None else ""))
    file.write_text(_json(config))
    return said


def _add(backend: Backend, config: dict[str, Any], token: ImageToken, out: Path) -> None:
    """Makes the image token known to the tokenizer in `out` and to its `config`."""
    if backend.token_to_id(token.text) is None:
        backend.add_special_tokens([_added(token.text)])
        backend.save(str(out / tokenizers.FILE))
    if backend.token_to_id(token.text) != token.id:
        raise UserError(f"--image-token-id {token.id}: the tokenizer would call {token.text} "
                        f"{backend.token_to_id(token.text)}; leave the flag out")
    config.setdefault("extra_special_tokens", {"image_token": token.text})
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"][str(token.id)] = {
            "content": token.text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": True}


def _write_generation(backend: Backend, config: dict[str, Any], token: ImageToken | None, settings: ChatSettings,
                      out: Path) -> None:
    """generation_config.json with the template's stop tokens; beginning, end and padding into `config` as well."""
    tokenizer = tokenizers.Tokenizer(backend)
    end, begin = chat.template_for(settings.template).stop, chat.begin_token(tokenizer)
    stop = dict.fromkeys((tokenizer.id(end), *chat.stop_ids(tokenizer, settings.template)))
    config["eos_token"] = end
    if begin is not None:
        config["bos_token"] = begin
    config.setdefault("pad_token", end)
    pad = config["pad_token"]["content"] if isinstance(config["pad_token"], dict) else config["pad_token"]
    result = {"bos_token_id": tokenizer.id(begin) if begin is not None else None, "eos_token_id": list(stop),
              "pad_token_id": tokenizer.id(pad)}
    if token is not None and token.id < token.rows:
        # Sampling must write neither pictures nor the rows that were only added to fill up.
        result["suppress_tokens"] = sorted({token.id, *range(token.old_rows, token.rows)})
    (out / "generation_config.json").write_text(_json(result))


def chat_template(settings: ChatSettings, image: str) -> str:
    """The Jinja template that writes a conversation down as `data.chat` does.

    Messages are {"role": "system" | "user" | "assistant", "content": a string, or a list of {"type": "image"} and
    {"type": "text", "text": ...}}; an image stands in front of the first question.
    """
    form = chat.template_for(settings.template)
    mark = "\x00"
    strip = form.ask("x?", True, False) == "x"  # "compact" leaves a question's last mark out
    text = "text.rstrip(' .?!')" if strip else "text"

    def around(written: str, inner: str) -> str:
        before, _, after = written.partition(mark)
        return " ~ ".join(part for part in (json.dumps(before) if before else "", inner,
                                            json.dumps(after) if after else "") if part)

    system = form.system if settings.system is None else settings.system
    header = chat.opening(settings.template)
    ask = {(first, seen): around(form.ask(mark, first, seen), text)
           for first in (True, False) for seen in (True, False)}
    return (
        "{%- set ns = namespace(system=" + json.dumps(system) + ", first=true) -%}"
        "{%- if messages and messages[0]['role'] == 'system' -%}"
        "{%- set first = messages[0]['content'] -%}"
        "{%- set ns.system = first if first is string else first[0]['text'] -%}{%- endif -%}"
        "{%- if ns.system -%}{{- " + around(form.trunk(mark), "ns.system") + " -}}"
        "{%- else -%}{{- " + json.dumps(form.trunk("")) + " -}}{%- endif -%}"
        "{%- for message in messages if message['role'] != 'system' -%}"
        "{%- set parts = [{'type': 'text', 'text': message['content']}] if message['content'] is string"
        " else message['content'] -%}"
        "{%- set text = parts | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') -%}"
        "{%- set images = parts | selectattr('type', 'equalto', 'image') | list -%}"
        "{%- if message['role'] == 'assistant' -%}{{- " + around(form.reply(mark), "text") + " -}}"
        "{%- elif ns.first -%}{{- " + json.dumps(header) + " -}}"
        "{%- if images -%}{{- " + f"{json.dumps(image)} * (images | length) ~ {ask[True, True]}" + " -}}"
        "{%- else -%}{{- " + ask[True, False] + " -}}{%- endif -%}{%- set ns.first = false -%}"
        "{%- else -%}{{- " + ask[False, False] + " -}}{%- endif -%}"
        "{%- endfor -%}")


def picture_processor(tower: VisionConfig, settings: ChatSettings | None) -> dict[str, Any]:
    """preprocessor_config.json: pictures squared as in training (chat.json; else the shortest edge scaled and the
    centre cropped), at the encoder's size and normalisation."""
    resize, size = settings.resize if settings is not None else "square", tower.image_size
    square = {"height": size, "width": size}
    return {"image_processor_type": "LlavaImageProcessor" if resize == "pad" else "CLIPImageProcessor",
            "do_resize": True, "size": {"shortest_edge": size} if resize == "square" else square,
            "resample": _BICUBIC, "do_center_crop": resize == "square", "crop_size": square,
            "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(tower.mean),
            "image_std": list(tower.std), "do_convert_rgb": True, **({"do_pad": True} if resize == "pad" else {})}


def write_picture_processor(out: Path, tower: VisionConfig, settings: ChatSettings | None) -> None:
    """preprocessor_config.json, which AutoImageProcessor reads."""
    (out / "preprocessor_config.json").write_text(_json(picture_processor(tower, settings)))


def write_llava_processor(out: Path, config: ModelConfig, settings: ChatSettings | None, token: ImageToken) -> None:
    """preprocessor_config.json and processor_config.json, which AutoProcessor makes a LlavaProcessor of, or with
    tiling a LlavaNextProcessor."""
    tower, kind = config.vision[0], "LlavaProcessor"
    pictures = picture_processor(tower, settings)
    if config.tiling is not None:
        kind = "LlavaNextProcessor"
        square = {"height": tower.image_size, "width": tower.image_size}
        pictures |= {"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": tower.image_size},
                     "crop_size": square, "do_center_crop": True, "do_pad": True,
                     "image_grid_pinpoints": [list(pair) for pair in config.tiling.pinpoints]}
    (out / "preprocessor_config.json").write_text(_json({**pictures, "processor_class": kind}))
    (out / "processor_config.json").write_text(_json({
        "processor_class": kind, "patch_size": tower.patch_size, "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default", "image_token": token.text}))


def _json(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
