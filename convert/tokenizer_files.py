"""What travels with the weights: the tokenizer's files, and how a model reads pictures and turns."""

from __future__ import annotations

from pathlib import Path

from tokenizers import normalizers, pre_tokenizers

from convert.files import read_json
from spatialllm_jax.data.tokenizer import FILE, Tokenizer, load
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference.prompts import ChatSettings
from spatialllm_jax.models.config import ModelConfig

# Copied as they are; none of them is needed here, all of them when the model goes back.
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
              "chat_template.json", "generation_config.json", "preprocessor_config.json", "processor_config.json")
_SENTENCEPIECE = "tokenizer.model"
# A token that only one template's vocabulary has.
_MARKS = {"<|start_header_id|>": "llama3", "<|im_start|>": "chatml", "</s>": "vicuna_v1"}


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Name -> content of the files beside the weights, with a tokenizer.json even where the folder has none.

    Vicuna and Llama 2 come with sentencepiece's tokenizer.model alone; transformers turns it into a tokenizer.json,
    which needs the package sentencepiece.

    Raises:
        UserError: the tokenizer cannot be read, or the package is not installed.
    """
    found = {name: (folder / name).read_bytes() for name in (FILE, *COMPANIONS) if (folder / name).is_file()}
    if FILE in found:
        load(folder)  # a broken one is found now, not when training starts
    elif (folder / _SENTENCEPIECE).is_file():
        found[FILE] = _from_sentencepiece(folder)
    return found


def _from_sentencepiece(folder: Path) -> bytes:
    try:
        import sentencepiece  # noqa: F401 (transformers looks for it)
    except ImportError:
        raise UserError(f"{folder} has only {_SENTENCEPIECE}, which needs the package sentencepiece: "
                        "pip install 'spatialllm-jax[sentencepiece]'") from None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
        backend = tokenizer.backend_tokenizer
        split = backend.pre_tokenizer
        if isinstance(split, pre_tokenizers.Metaspace) and split.prepend_scheme == "first":
            # Sentencepiece, and so LLaVA's training, puts a space before every text, after special tokens and
            # before spaces as well; "first" does neither.
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            backend.pre_tokenizer = None
        return backend.to_str(pretty=True).encode()
    except Exception as error:  # the library raises whatever its parsers raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder / _SENTENCEPIECE} is not a tokenizer that transformers can read ({reason})") from None


def template_of(tokenizer: Tokenizer, where: str) -> str:
    """The chat template that a vocabulary belongs to, by its end-of-turn token.

    Raises:
        UserError: it has none of the known ones.
    """
    for mark, template in _MARKS.items():
        if tokenizer.has(mark):
            return template
    raise UserError(f"{where}: the tokenizer has none of {', '.join(_MARKS)}; name the chat template with --template")


def chat_json(folder: Path) -> ChatSettings | None:
    """What chat.json of a folder says, if it has one. Raises UserError when it cannot be read."""
    file = folder / "chat.json"
    if not file.is_file():
        return None
    try:
        return ChatSettings(**read_json(file))
    except TypeError as error:
        raise UserError(f"{file} does not say how the model is asked ({error}); it holds template, system, image_size "
                        "and resize") from None


def chat_settings(folder: Path, config: ModelConfig, tokenizer: Tokenizer, template: str | None = None,
                  ) -> ChatSettings:
    """How a whole model of a transformers folder reads: as chat.json says where the model was exported from here,
    else template by its vocabulary, pictures by its processor.

    Args:
        template: overrides the one found.

    Raises:
        UserError: no template fits, or chat.json is damaged.
    """
    if template is None and (stored := chat_json(folder)) is not None:
        return stored
    resize = "pad"  # LLaVA-1.5's evaluation; image_aspect_ratio "pad" in its config.json
    preprocessor = folder / "preprocessor_config.json"
    if preprocessor.is_file() and read_json(preprocessor).get("do_center_crop") and (
            read_json(folder / "config.json").get("image_aspect_ratio") != "pad"):
        resize = "square"
    return ChatSettings(template or template_of(tokenizer, str(folder)), None,
                        max(encoder.image_size for encoder in config.vision), resize)
