"""A model folder (`models.store`) for the PyTorch world: a folder that transformers' from_pretrained reads.

    python -m convert.to_hf MODEL --out DIR

One encoder becomes its own class (CLIPVisionModel, Dinov2Model, Dinov2WithRegistersModel, ViTMAEModel), a decoder
LlamaForCausalLM, both towers of CLIP a CLIPModel, a model of LLaVA's shape LlavaForConditionalGeneration. Every
other whole model comes with its own PyTorch module (`convert.torch_module`), for trust_remote_code. See
docs/weights.md.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError, safe_open

from convert import adapter, clip, dinov2, hf_text, llama, llava, llava_next, llava_original, mae, spatialllm
from convert.engine import family_of, prefix_of
from convert.export import EXPORTED_BY, LORA, Stored, Tensor, dtype_name, padded, tensors, without_lora, write_shards
from convert.tokenizer_files import chat_json
from convert.verify import report, verify
from launch.cli import parser, run
from spatialllm_jax.data import chat
from spatialllm_jax.data import tokenizer as tokenizers
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference.prompts import ChatSettings
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ClipConfig, ConnectorConfig, LlamaConfig, LoRAConfig, ModelConfig, VisionConfig
from spatialllm_jax.models.linear import Params

_CONFIGS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "clip": clip.config_to_hf, "contrastive": clip.contrastive_config_to_hf, "dinov2": dinov2.config_to_hf,
    "mae": mae.config_to_hf, "llama": llama.config_to_hf}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
PROJECTOR = "mm_projector.bin"
_MODULE = Path(__file__).parent / "torch_module"


@dataclasses.dataclass(frozen=True)
class Part:
    """What is exported.

    Attributes:
        stored: its parameters, LoRA pairs included.
        config: without LoRA.
        lora: beginning of a parameter's path -> LoRA there.
    """

    stored: Stored
    config: Any
    lora: Mapping[str, LoRAConfig | None]


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of the command; see its --help."""

    format: str = "auto"
    dtype: str = "stored"
    shard_size: str = "5GB"
    lora: str = "merge"
    base: str | None = None
    image_token: str = "<image>"
    image_token_id: int | None = None
    pad_vocab: int = 64
    vision_tower: str | None = None


def chosen(folder: Path, part: str | None) -> Part:
    """The whole of a model folder, or its part "llm", "connector" or "vision/NAME".

    Raises:
        UserError: it is not a model folder, or has no such part.
    """
    weights = store.open_weights(folder)
    config = weights.config
    stored = Stored(weights.shapes, lambda path: np.asarray(weights.load(path)[path]))
    encoders = config.vision if isinstance(config, ModelConfig) else (
        (config.vision,) if isinstance(config, ClipConfig) else (config,) if isinstance(config, VisionConfig) else ())
    parts: dict[str, tuple[Any, LoRAConfig | None]] = {
        f"vision/{encoder.name}": (encoder, getattr(config, "vision_lora", None)) for encoder in encoders}
    if isinstance(config, LlamaConfig | ModelConfig):
        parts["llm"] = (getattr(config, "llm", config), getattr(config, "llm_lora", None))
    if isinstance(config, ModelConfig):
        parts["connector"] = (config.connector, None)
    if not parts:
        raise UserError(f"{folder}/config.json describes a {type(config).__name__}, which is no model of its own")
    if part is None and isinstance(config, VisionConfig | LlamaConfig):
        part = next(iter(parts))
    if part is None:
        return whole(stored, config)
    if part not in parts:
        raise UserError(f"--part {part}: {folder} has no such part; choose one of {', '.join(parts)}")
    below = stored.below(part)
    if not below.shapes:
        raise UserError(f"--part {part}: {folder} describes it but holds no parameters of it")
    return Part(below, parts[part][0], {"": parts[part][1]})


def whole(stored: Stored, config: Any) -> Part:
    """All that a configuration describes, its LoRA set apart."""
    lora = {start: getattr(config, f"{start}_lora", None) for start in ("vision", "llm")}
    plain = {f"{start}_lora": None for start in lora if hasattr(config, f"{start}_lora")}
    return Part(stored, dataclasses.replace(config, **plain), lora)


def _is_export(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return {file.name for file in folder.iterdir()} <= {PROJECTOR}
    try:
        with safe_open(str(files[0]), framework="numpy") as file:
            return EXPORTED_BY.items() <= (file.metadata() or {}).items()
    except SafetensorError:
        return False


def bytes_of(text: str) -> int:
    """Bytes of "5GB", "200MB", "4096".

    Raises:
        UserError: it is not written like that.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?B)?", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size <= 0:
        raise UserError(f"--shard-size {text!r} is not a size; write it like 5GB or 200MB")
    return size


def export(part: Part, source: Path, out: Path, options: Options,
           ) -> tuple[str, list[Tensor], list[str], dict[str, Any]]:
    """Writes everything into the new folder `out`.

    Returns:
        (family, tensors written, sentences for the log, more for --json)
    """
    family = family_of(part.config) if options.format in ("auto", "llava_original") else options.format
    if options.format != "auto" and not isinstance(part.config, ModelConfig):
        raise UserError(f"--format {options.format} is for a whole model, but this is a {family_of(part.config)} "
                        "model; leave the flag out")
    if isinstance(part.config, ConnectorConfig):
        parameters = {
            path: _cast(Tensor(path, tuple(leaf.shape), np.dtype(leaf.dtype), partial(part.stored.read, path)),
                        _dtype(options.dtype)) for path, leaf in part.stored.shapes.items()}
        llava_original.save_projector(out / PROJECTOR, lambda path: parameters[path].read(), part.config)
        return family, list(parameters.values()), [], {}
    stored = without_lora(part.stored, part.lora, merge=options.lora != "drop")
    said = [f"LoRA updates are {'left out' if options.lora == 'drop' else 'merged into the weights'}"] \
        if len(stored.shapes) < len(part.stored.shapes) else []
    written = tensors(stored, family, part.config, _dtype(options.dtype))
    settings, token, more = chat_json(source), None, {}
    if isinstance(part.config, ModelConfig) and options.format == "llava_original":
        if family == "spatialllm":
            raise UserError(f"--format llava_original: LLaVA has no place for {llava.unlike(part.config)}; leave the "
                            "flag out")
        hf = llava_original.config_to_hf(part.config, options.vision_tower)
        written = [dataclasses.replace(tensor, name=llava_original.original_name(tensor.name)) for tensor in written]
        family = "llava_original"
        said.append(f"the original's loader takes the vision tower from {hf['mm_vision_tower']}, not from these files")
    elif isinstance(part.config, ModelConfig):
        hf, written, token = _whole(part.config, family, written, source, out, settings, options)
        said.append(token.said)
        more = {"image_token_id": token.id}
    else:
        hf = _CONFIGS[family](part.config)
    if family == "contrastive" and settings is not None and (source / tokenizers.FILE).is_file():
        hf["text_config"]["eos_token_id"] = tokenizers.load(source).id(chat.template_for(settings.template).stop)
    hf["torch_dtype"] = dtype_name(written)
    (out / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
    if family not in ("clip", "dinov2", "mae"):
        said += hf_text.write_text(source, out, token, settings)
    if isinstance(part.config, VisionConfig | ClipConfig):
        tower = part.config.vision if isinstance(part.config, ClipConfig) else part.config
        hf_text.write_picture_processor(out, tower, settings)
    write_shards(out, written, bytes_of(options.shard_size))
    return family, written, said, more


def save(out: str | Path, config: Any, params: Params, beside: str | Path | None = None,
         options: Options | None = None) -> None:
    """Writes parameters in memory as the command writes a model folder.

    Args:
        params: nested, as `SpatialLLM`, `CLIP`, or one tower or decoder alone has them.
        beside: folder whose tokenizer.json and chat.json go along.

    Raises:
        UserError: as the command.
    """
    flat = {"/".join(path): leaf for path, leaf in flatten_dict(dict(params)).items()}
    part = whole(Stored(flat, lambda path: np.asarray(flat[path])), config)
    with store.replacing(out, _is_export, "an export of convert.to_hf") as new:
        export(part, new if beside is None else Path(beside), new, options or Options())


def _whole(config: ModelConfig, family: str, written: list[Tensor], source: Path, out: Path,
           settings: ChatSettings | None, options: Options) -> tuple[dict[str, Any], list[Tensor], hf_text.ImageToken]:
    """config.json, tensors and image token of a whole model; for LLaVA the vocabulary grows when it must."""
    multiple = None if family == "spatialllm" else options.pad_vocab
    token = hf_text.image_token(source, options.image_token, options.image_token_id, config.llm.vocab_size, multiple)
    if family == "spatialllm":
        hf = spatialllm.config_to_hf(config, token.id)
        if settings is not None:
            hf["picture"] = {"size": settings.image_size, "resize": settings.resize}
        for file in _MODULE.glob("*_spatialllm.py"):
            shutil.copyfile(file, out / file.name)
        return hf, written, token
    to_hf = llava_next.config_to_hf if family == "llava_next" else llava.config_to_hf
    hf = to_hf(config.replace(llm=dataclasses.replace(config.llm, vocab_size=token.rows)), token.id)
    if token.rows > config.llm.vocab_size:
        grown = {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}
        written = [padded(tensor, token.rows) if tensor.name in grown else tensor for tensor in written]
    hf_text.write_llava_processor(out, config, settings, token)
    return hf, written, token


def export_adapter(part: Part, out: Path, options: Options) -> tuple[str, list[Tensor], list[str], dict[str, Any]]:
    """Writes the LoRA updates of one part into the new folder `out`; returns as `export` does."""
    if isinstance(part.config, ConnectorConfig):
        raise UserError("--lora adapter: a connector has no LoRA updates; leave the flag out")
    if "" not in part.lora:
        raise UserError("--lora adapter is for one part: add --part llm or --part vision/NAME, and export its base "
                        "with --lora drop")
    family = family_of(part.config)
    written = [_cast(tensor, _dtype(options.dtype))
               for tensor in adapter.adapter_tensors(part.stored, family, part.config)]
    lora = part.lora[""]
    if lora is None:
        raise UserError("--lora adapter: the folder holds LoRA updates, but its config.json has no LoRA there; set "
                        "vision_lora or llm_lora in it as in training")
    (out / adapter.CONFIG).write_text(json.dumps(
        adapter.adapter_config(written, lora, family, options.base), indent=2) + "\n")
    write_shards(out, written, 1 << 62, adapter.WEIGHTS)
    return family, written, [f"an adapter for the {family} model"], {}


def _cast(tensor: Tensor, dtype: np.dtype | None) -> Tensor:
    if dtype is None:
        return tensor
    return dataclasses.replace(tensor, dtype=dtype, read=lambda: tensor.read().astype(dtype))


def _dtype(name: str) -> np.dtype | None:
    return None if name == "stored" else jnp.dtype(name)


def _exported(folder: Path, part: Part) -> store.Weights:
    """The parameters of an exported part, under their paths in the whole."""
    weights = store.open_weights(folder)
    inside = {path: leaf for path, leaf in weights.shapes.items() if path.startswith(prefix_of(part.config))}
    return dataclasses.replace(weights, config=part.config, shapes=inside)


def _flags() -> ArgumentParser:
    flags = parser((__doc__ or "").splitlines()[0])
    flags.add_argument("model", type=Path, help="model folder (config.json and params/)")
    flags.add_argument("--out", type=Path, required=True, help="folder to write")
    flags.add_argument("--part", default=None, help="llm, vision/NAME, or connector (as mm_projector.bin): that alone")
    flags.add_argument("--format", default="auto", choices=["auto", "llava", "llava_original", "spatialllm"],
                       help="of a whole model: LLaVA's if it fits (transformers', or the original repository's), "
                            "else our own PyTorch module")
    flags.add_argument("--vision-tower", default=None, metavar="NAME",
                       help="llava_original: folder or id that its loader takes the vision tower from")
    flags.add_argument("--dtype", default="stored", choices=["stored", "float32", "bfloat16", "float16"],
                       help="type to write")
    flags.add_argument("--shard-size", default="5GB", help="largest file")
    flags.add_argument("--lora", default="merge", choices=["merge", "adapter", "drop"],
                       help="updates into the weights; or alone, as peft's adapter; or left out")
    flags.add_argument("--base", default=None, help="with --lora adapter: name or folder of its base model")
    flags.add_argument("--image-token", default="<image>", help="token whose places the visual tokens take")
    flags.add_argument("--image-token-id", type=int, default=None,
                       help="its id, when there is no tokenizer (default: the first beyond the vocabulary)")
    flags.add_argument("--pad-vocab", type=int, default=64,
                       help="LLaVA: rows added for the image token make the vocabulary a multiple of this")
    flags.add_argument("--verify", action="store_true", help="run both sides afterwards and compare (needs torch)")
    return flags


def main(argv: list[str]) -> Mapping[str, Any]:
    """See the module's docstring."""
    args = _flags().parse_args(argv)
    options = Options(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Options)})
    bytes_of(options.shard_size)
    if options.pad_vocab < 1:
        raise UserError(f"--pad-vocab {options.pad_vocab} is not a multiple; give 1 or more")
    part = chosen(args.model, args.part)
    if args.verify and (args.format == "llava_original" or isinstance(part.config, ConnectorConfig)):
        raise UserError("--verify runs what transformers can load, which are not the original LLaVA's files; leave it "
                        "out")
    if args.verify and any(path.rpartition("/")[2] in LORA for path in part.stored.shapes):
        raise UserError(f"--verify compares plain parameters, but {args.model} holds LoRA updates; leave it out")
    with store.replacing(args.out, _is_export, "an export of convert.to_hf") as new:
        family, written, said, more = (export_adapter(part, new, options) if options.lora == "adapter"
                                       else export(part, args.model, new, options))
    verified = report(verify(args.out, _exported(args.model, part))) if args.verify else {}
    count = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in written)
    files = sorted(file.name for pattern in ("*.safetensors", PROJECTOR)
                   for file in args.out.glob(pattern))
    print(f"{args.model}: {family}, {count / 1e6:.1f}M parameters in {len(files)} file(s) -> {args.out}")
    for sentence in said:
        print(f"  {sentence}")
    return {**verified, "out": str(args.out), "family": family, "parameters": count, "files": files,
            "dtype": dtype_name(written), "notes": said, **more}


if __name__ == "__main__":
    run(main)
