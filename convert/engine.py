"""The one engine that moves tensors between PyTorch checkpoints and parameter trees, both ways.

Every tensor of the source is used exactly once and every parameter is filled exactly once; anything else is
an error that lists the names. Tensors are read one at a time, so `state` may be a lazy mapping.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from convert import clip, dinov2, llama, llava, mae, spatialllm
from convert.rules import Rule
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.attention import self_mask
from spatialllm_jax.models.clip_text import abstract_clip
from spatialllm_jax.models.config import ClipConfig, LlamaConfig, ModelConfig, VisionConfig
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.llama import Llama
from spatialllm_jax.models.spatialllm import abstract_params
from spatialllm_jax.models.vit import ViT

Config = VisionConfig | LlamaConfig | ClipConfig | ModelConfig


def family_of(config: Config) -> str:
    """The family that `config` belongs to: "clip", "dinov2", "mae", "llama", "contrastive", "llava" or "spatialllm"."""
    if isinstance(config, VisionConfig):
        return config.kind
    if isinstance(config, ModelConfig):
        return "llava" if llava.unlike(config) is None else "spatialllm"
    return {LlamaConfig: "llama", ClipConfig: "contrastive"}[type(config)]


def rules_of(family: str, config: Any) -> tuple[list[Rule], tuple[str, ...]]:
    """The name map of a family, and the patterns of source tensors that it drops on purpose."""
    if family == "clip":
        return ([rule.nested("", clip.PREFIXES) for rule in clip.rules(config)], clip.IGNORED + clip.CONTRASTIVE)
    if family == "contrastive":
        return clip.contrastive_rules(config), clip.IGNORED
    if family == "dinov2":
        return dinov2.rules(config), dinov2.IGNORED
    if family == "mae":
        return [rule.nested("", mae.PREFIXES) for rule in mae.rules(config)], mae.IGNORED
    if family == "llama":
        # A tied checkpoint may repeat its embedding as lm_head.
        return llama.rules(config), llama.IGNORED + ((r"lm_head\.weight",) if config.tie_embeddings else ())
    if family == "llava":
        return llava.rules(config), llava.IGNORED
    if family == "spatialllm":
        return spatialllm.rules(config), spatialllm.IGNORED
    raise UserError(f"model family {family!r} is not known; choose one of clip, contrastive, dinov2, mae, llama, "
                    "llava, spatialllm")


def abstract(config: Config) -> Any:
    """Shapes of the parameter tree that `to_jax` fills, as `jax.ShapeDtypeStruct`."""
    if isinstance(config, ModelConfig):
        return abstract_params(config)
    if isinstance(config, ClipConfig):
        return abstract_clip(config)
    if isinstance(config, VisionConfig):
        images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
        return jax.eval_shape(ViT(config).init, jax.random.key(0), images)["params"]

    def init(llm: Llama, tokens: jax.Array) -> jax.Array:
        return llm.logits(llm(llm.embed(tokens), tokens, self_mask(tokens))[0])

    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(partial(Llama(config).init, method=init), jax.random.key(0), tokens)["params"]


def to_jax(state: Mapping[str, np.ndarray], family: str, config: Any, dtype: Any = np.float32) -> Params:
    """Parameters from a PyTorch state.

    Args:
        state: tensor name -> array; read once each, in the order of the rules.
        family: see `family_of`.
        config: the matching configuration; shapes are checked against it.
        dtype: type of the parameters.

    Raises:
        UserError: tensors missing, left over, present under two names, or of another shape.
    """
    rules, ignored = rules_of(family, config)
    names = set(state)
    shapes = {"/".join(path): leaf.shape for path, leaf in flatten_dict(abstract(config)).items()}
    _complete([rule.target for rule in rules], shapes)

    missing: list[str] = []
    wanted: list[tuple[Rule, int | None, str]] = []
    for rule in rules:
        for i in range(rule.depth) if rule.depth is not None else [None]:
            spellings = [source.format(i=i) for source in rule.sources]
            found = [s for s in spellings if s.partition("@")[0] in names]
            if len(found) > 1:
                raise UserError(f"the checkpoint holds {rule.target} twice: {' and '.join(found)}; keep one of them")
            if found:
                wanted.append((rule, i, found[0]))
            else:
                missing.append(spellings[0])
    used = {source.partition("@")[0] for _, _, source in wanted}
    unused = [n for n in sorted(names - used) if not any(re.fullmatch(p, n) for p in ignored)]
    if missing or unused:
        raise UserError(f"the checkpoint does not fit the {family} model: missing {_listed(missing)}; "
                        f"left over {_listed(unused)}; check that config and checkpoint belong together")
    dropped = sorted(names - used)
    if dropped:
        logging.info("%d tensors of the checkpoint are not needed here: %s", len(dropped), _listed(dropped))

    params: dict[str, np.ndarray] = {}
    for rule, i, source in wanted:
        name, _, part = source.partition("@")
        tensor = np.asarray(state[name])
        if part:
            k, n = map(int, part.split("/"))
            tensor = np.split(tensor, n)[k]
        expected = shapes[rule.target] if i is None else shapes[rule.target][1:]
        try:
            value = rule.layout.to_jax(tensor)
        except (ValueError, RuntimeError):
            value = tensor
        if value.shape != expected:
            raise UserError(f"tensor {name} of shape {tensor.shape} does not fit {rule.target}, which expects "
                            f"{expected}; check that config and checkpoint belong together")
        if i is None:
            params[rule.target] = np.asarray(value, dtype, order="C")
        else:
            params.setdefault(rule.target, np.empty(shapes[rule.target], dtype))[i] = value
    return unflatten_dict({tuple(path.split("/")): value for path, value in params.items()})


def to_torch(params: Mapping[str, Any], family: str, config: Any) -> dict[str, np.ndarray]:
    """The PyTorch state of `params`, under the names that transformers writes to files.

    Raises:
        UserError: `params` is not a tree of this configuration (merge LoRA first).
    """
    rules, _ = rules_of(family, config)
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(dict(params)).items()}
    _complete([rule.target for rule in rules], flat)
    state: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for rule in rules:
        for i in range(rule.depth) if rule.depth is not None else [None]:
            name, _, part = rule.sources[0].format(i=i).partition("@")
            tensor = rule.layout.to_torch(flat[rule.target] if i is None else flat[rule.target][i])
            if part:
                parts.setdefault(name, {})[int(part.split("/")[0])] = tensor
            else:
                state[name] = np.asarray(tensor, order="C")
    for name, pieces in parts.items():
        state[name] = np.concatenate([pieces[k] for k in sorted(pieces)])
    return state


def _complete(targets: Iterable[str], params: Iterable[str]) -> None:
    """Rules and parameters must match one to one."""
    targets = list(targets)
    twice = sorted({t for t in targets if targets.count(t) > 1})
    unfilled, unknown = sorted(set(params) - set(targets)), sorted(set(targets) - set(params))
    if twice or unfilled or unknown:
        raise UserError(f"name map and parameters differ: parameters without a rule {_listed(unfilled)}; rules "
                        f"without a parameter {_listed(unknown)}; filled twice {_listed(twice)}")


def _listed(names: list[str], limit: int = 8) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
