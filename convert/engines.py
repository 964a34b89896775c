"""Engines that answer with any whole model: a model folder, a transformers folder, or an id of the hub."""

from __future__ import annotations

from pathlib import Path

import jax
import tokenizers as backends

from convert import hub
from convert.files import read_json
from convert.folders import open_weights
from convert.tokenizer_files import chat_settings, tokenizer_files
from spatialllm_jax.data.tokenizer import FILE, Tokenizer
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference import engine
from spatialllm_jax.models.config import ModelConfig


def load_engine(folder: str | Path, *, batch_size: int = 16, template: str | None = None,
                mesh: jax.sharding.Mesh | None = None) -> engine.Engine:
    """An engine, its weights read where they are.

    Args:
        mesh: devices to spread it over; None for one.
        template: chat template of a transformers folder, where its vocabulary does not tell.

    Raises:
        UserError: the folder holds no whole model, or lacks a tokenizer.
    """
    folder = hub.local(folder)
    config = folder / "config.json"
    if not config.is_file() or "model_type" not in read_json(config):
        return engine.load_engine(folder, batch_size=batch_size, mesh=mesh)
    weights = open_weights(folder)
    if not isinstance(weights.config, ModelConfig):
        raise UserError(f"{folder} holds a {type(weights.config).__name__}, not a whole model; give a LLaVA's folder")
    files = tokenizer_files(folder)
    if FILE not in files:
        raise UserError(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model); fetch it beside the weights")
    tokenizer = Tokenizer(backends.Tokenizer.from_buffer(files[FILE]))
    return engine.build_engine(weights, chat_settings(folder, weights.config, tokenizer, template), tokenizer,
                               batch_size=batch_size, mesh=mesh)
