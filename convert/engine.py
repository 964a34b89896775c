"""Which name map belongs to a model, what its parameters look like, and a PyTorch state as such parameters.

Every tensor of the source is used exactly once and every parameter is filled exactly once; anything else is an error
that lists the names (`convert.plan`). The way back is `convert.export`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from convert import clip, dinov2, llama, llava, llava_next, mae, spatialllm
from convert.plan import Fill, State, filled, make_plan
from convert.rules import Rule
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.attention import self_mask
from spatialllm_jax.models.clip_text import abstract_clip
from spatialllm_jax.models.config import ClipConfig, ConnectorConfig, LlamaConfig, ModelConfig, VisionConfig
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.llama import Llama
from spatialllm_jax.models.spatialllm import abstract_params
from spatialllm_jax.models.vit import ViT

Config = VisionConfig | LlamaConfig | ClipConfig | ModelConfig


def family_of(config: Config | ConnectorConfig) -> str:
    """The family that `config` belongs to, a name that `rules_of` knows; or "connector"."""
    if isinstance(config, VisionConfig):
        return config.kind
    if isinstance(config, ModelConfig):
        if config.tiling is not None:
            return "llava_next"
        return "llava" if llava.unlike(config) is None else "spatialllm"
    return {LlamaConfig: "llama", ClipConfig: "contrastive", ConnectorConfig: "connector"}[type(config)]


def prefix_of(config: Config | ConnectorConfig) -> str:
    """Where a model's parameters lie in SpatialLLM's tree: below "vision/<name>/", "llm/", or at the root."""
    if isinstance(config, VisionConfig):
        return f"vision/{config.name}/"
    return "llm/" if isinstance(config, LlamaConfig) else ""


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
    if family == "llava_next":
        return llava_next.rules(config), llava.IGNORED
    if family == "spatialllm":
        return spatialllm.rules(config), spatialllm.IGNORED
    raise UserError(f"model family {family!r} is not known; choose one of clip, contrastive, dinov2, mae, llama, "
                    "llava, llava_next, spatialllm")


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


def to_jax(state: State, family: str, config: Any, dtype: Any = np.float32) -> Params:
    """Parameters from a PyTorch state, in memory.

    Args:
        state: tensor name -> array; read once each.
        family: see `family_of`.
        config: the matching configuration; shapes are checked against it.
        dtype: type of the parameters; None = as they are.

    Raises:
        UserError: tensors missing, left over, present under two names, of another shape, or not finite.
    """
    return filled(state, plan_of(state, family, config), dtype)


def plan_of(state: State, family: str, config: Any) -> list[Fill]:
    """How `state` fills the parameters of a family's model; see `plan.make_plan`."""
    rules, ignored = rules_of(family, config)
    shapes = {"/".join(path): leaf.shape for path, leaf in flatten_dict(abstract(config)).items()}
    return make_plan(state, rules, ignored, shapes, family)
