"""How fast, and in how much memory, a Llama-3-8B-shaped checkpoint is converted, beside `cp -r` of the same files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tqdm import tqdm

from convert.engine import plan_of, rules_of
from launch import bench_report, cli
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import LlamaConfig
from spatialllm_jax.models.presets import LLAMA3_8B, SMOLLM2_135M
from spatialllm_jax.models.tensor_file import TensorFiles, TensorWriter

_SHARD = 5 * 10**9
_MODELS = {"llama3_8b": LLAMA3_8B, "smollm2_135m": SMOLLM2_135M}


def bench(argv: Sequence[str]) -> dict[str, Any]:
    """Writes a random checkpoint, copies it, converts it; caches are dropped before both."""
    parser = cli.parser((__doc__ or "").splitlines()[0], prog="python -m launch.bench convert")
    parser.add_argument("--model", default="llama3_8b", choices=sorted(_MODELS), help="shape of the checkpoint")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-convert"),
                        help="where the files go, on the disk to be measured; removed at the end")
    parser.add_argument("--threads", type=int, default=2, help="of the conversion")
    args = parser.parse_args(argv)
    if args.threads < 1:
        raise UserError(f"--threads {args.threads} does nothing; give 1 or more")
    if args.folder.exists():
        raise UserError(f"--folder {args.folder} exists; choose one that does not, as it is removed at the end")
    source, copy, out = (args.folder / name for name in ("source", "copy", "out"))
    try:
        size = write_checkpoint(_MODELS[args.model], source)
        copying, _ = _timed(["cp", "-r", str(source), str(copy)], source)
        shutil.rmtree(copy)
        ours, peak = _timed([sys.executable, "-m", "convert.from_hf", str(source), "--out", str(out), "--quiet",
                             "--threads", str(args.threads)], source)
        _compare(source, out, _MODELS[args.model])
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    result = {"gigabytes": round(size / 1e9, 2), "ours_gb_per_s": round(size / ours / 1e9, 3),
              "cp_gb_per_s": round(size / copying / 1e9, 3), "ratio": round(copying / ours, 3),
              "peak_gib": round(peak / 2**30, 2)}
    bench_report.table(result)
    return bench_report.finish(result, "ml_dtypes")


def write_checkpoint(config: LlamaConfig, folder: Path) -> int:
    """A random bf16 checkpoint of transformers' names in shards of 5 GB; returns its bytes."""
    rules, _ = rules_of("llama", config)
    shapes = _torch_shapes(config)
    names = [rule.sources[0].format(i=i) for rule in rules for i in range(rule.depth or 1)]
    # transformers' order: embedding, layer by layer, head.
    names.sort(key=lambda name: (name.startswith("lm_head"), "layers." in name, name))
    shards: list[dict[str, tuple[tuple[int, ...], Any]]] = [{}]
    room = _SHARD
    for name in names:
        size = 2 * int(np.prod(shapes[name]))
        if size > room and shards[-1]:
            shards.append({})
            room = _SHARD
        shards[-1][name] = (shapes[name], ml_dtypes.bfloat16)
        room -= size
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    weight_map = {}
    with tqdm(total=len(names), desc="random checkpoint", unit="tensor") as bar:
        for number, shard in enumerate(shards, 1):
            file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            with TensorWriter(file, shard, {"format": "pt"}) as writer:
                for name, (shape, _) in shard.items():
                    # Any bits but those of infinities and NaN.
                    bits = rng.integers(0, 1 << 16, shape, dtype=np.uint16) & np.uint16(0xBFFF)
                    writer.write(name, bits.view(ml_dtypes.bfloat16))
                    weight_map[name] = file.name
                    bar.update()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llama", "vocab_size": config.vocab_size, "hidden_size": config.width,
        "num_hidden_layers": config.depth, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "intermediate_size": config.mlp_dim, "head_dim": config.head_dim,
        "rope_theta": config.rope_theta, "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings}))
    return sum(file.stat().st_size for file in folder.iterdir())


def _torch_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, config.width), "model.norm.weight": (config.width,)}
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.width)
    for i in range(config.depth):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}{norm}.weight": (config.width,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": shape for name, shape in (
            ("q", (heads, config.width)), ("k", (kv, config.width)), ("v", (kv, config.width)),
            ("o", (config.width, heads)))}
        shapes |= {f"{layer}mlp.{name}_proj.weight": shape for name, shape in (
            ("gate", (config.mlp_dim, config.width)), ("up", (config.mlp_dim, config.width)),
            ("down", (config.width, config.mlp_dim)))}
    return shapes


def _timed(command: list[str], source: Path) -> tuple[float, int]:
    """(seconds, peak resident bytes) of a command that reads `source` from the disk."""
    os.sync()
    for file in source.iterdir():
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{' '.join(command[:4])} ... failed with exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def _compare(source: Path, out: Path, config: LlamaConfig) -> None:
    """A speed of wrong results is worth nothing: a layer of every parameter is compared."""
    state, written = TensorFiles(source), TensorFiles(out)
    for fill in plan_of(state, "llama", config):
        layer = len(fill.pieces) // 2
        ours = written[f"llm/{fill.target}"]
        if not np.array_equal(np.atleast_1d(ours[layer] if fill.stacked else ours)[:64].view(np.uint16),
                              np.atleast_1d(fill.view(state, layer))[:64].view(np.uint16)):
            raise UserError(f"the converted {fill.target} differs from its source")
