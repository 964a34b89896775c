"""The original LLaVA repository's folders (LlavaLlamaForCausalLM) and its stage-1 file, mm_projector.bin.

A folder's tensors are a Llama's under its own names, "model.mm_projector.*", with anyres pictures
"model.image_newline", and, when the vision tower was trained, "model.vision_tower.vision_tower.*". Untrained
towers are only named (mm_vision_tower); they come from a CLIP folder, or stay out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from convert import clip, llama
from convert.engine import Config, abstract
from convert.files import read_json
from convert.pickles import Pickles
from convert.plan import Fill, State, make_plan
from convert.rules import Rule, linear
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import ConnectorConfig, ModelConfig, Tiling, VisionConfig
from spatialllm_jax.models.presets import CLIP_L_336

# Stage 1 of some versions writes the projector without the model's prefix.
PROJECTOR = ("model.mm_projector", "mm_projector")
TOWER = "model.vision_tower.vision_tower."
# The last part of mm_vision_tower -> the tower.
TOWERS = {"clip-vit-large-patch14-336": CLIP_L_336,
          "clip-vit-large-patch14": replace(CLIP_L_336, image_size=224)}


class Original(Mapping[str, np.ndarray]):
    """The tensors of an original checkpoint, with a CLIP's as its vision tower when it holds none itself."""

    def __init__(self, state: State, tower: State | None = None) -> None:
        self._state = state
        self._tower = tower if tower is not None and not any(name.startswith(TOWER) for name in state) else {}

    @property
    def has_tower(self) -> bool:
        """Whether a vision tower is inside."""
        return any(name.startswith(TOWER) for name in self)

    def __getitem__(self, name: str) -> np.ndarray:
        if name.startswith(TOWER) and self._tower:
            return self._tower[name.removeprefix(TOWER)]
        return self._state[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._state
        yield from (TOWER + name for name in self._tower)

    def __len__(self) -> int:
        return len(self._state) + len(self._tower)


def recognised(hf: Mapping[str, Any]) -> bool:
    """Whether a config.json is the original repository's (llava-hf's has a text_config)."""
    return "text_config" not in hf and ("mm_vision_tower" in hf or hf.get("model_type") == "llava_llama"
                                        or "LlavaLlamaForCausalLM" in (hf.get("architectures") or ()))


def config_from_hf(hf: Mapping[str, Any], tower: VisionConfig | None = None) -> ModelConfig:
    """Our configuration of the original repository's config.json.

    Args:
        tower: the vision tower's; None looks mm_vision_tower up in `TOWERS`.

    Raises:
        UserError: the tower is not known, or a setting has no counterpart here.
    """
    name = str(hf.get("mm_vision_tower", hf.get("vision_tower", "")))
    tower = tower or TOWERS.get(name.rstrip("/").rpartition("/")[2])
    if tower is None:
        raise UserError(f"config.json: mm_vision_tower {name!r} is not one of {', '.join(TOWERS)}; give its CLIP "
                        "folder with --vision-tower")
    for key, accepted in (("mm_vision_select_feature", "patch"), ("mm_use_im_start_end", False),
                          ("mm_hidden_size", tower.width)):
        if hf.get(key, accepted) != accepted:
            raise UserError(f"config.json: {key} {hf[key]!r} is not supported with this vision tower; {accepted!r} is")
    tower = replace(tower, feature_layer=hf.get("mm_vision_select_layer", -2))
    connector = ConnectorConfig(grid=tower.grid, layers=_layers(hf.get("mm_projector_type", "linear")))
    return ModelConfig((tower,), connector, llama.config_from_hf(hf), tiling=_tiling(hf))


def _layers(kind: str) -> int:
    if kind == "linear":
        return 1
    if found := re.fullmatch(r"mlp(\d+)x_gelu", kind):
        return int(found[1])
    raise UserError(f"config.json: mm_projector_type {kind!r} is not supported; linear and mlp2x_gelu are")


def _tiling(hf: Mapping[str, Any]) -> Tiling | None:
    if hf.get("image_aspect_ratio") != "anyres":
        return None
    if (merge := hf.get("mm_patch_merge_type", "flat")) != "spatial_unpad":
        raise UserError(f"config.json: mm_patch_merge_type {merge!r} is not supported with image_aspect_ratio anyres; "
                        "spatial_unpad is")
    pinpoints = hf["image_grid_pinpoints"]
    if not isinstance(pinpoints, list):
        raise UserError(f"config.json: image_grid_pinpoints {pinpoints!r} is not supported; give a list of "
                        "[width, height]")
    # (width, height), unlike in transformers.
    return Tiling(tuple((int(height), int(width)) for width, height in pinpoints))


def tower_config(folder: Path) -> VisionConfig:
    """The vision tower of a transformers folder with a CLIP. Raises UserError when it holds something else."""
    hf = read_json(folder / "config.json")
    if (kind := hf.get("model_type")) not in ("clip", "clip_vision_model"):
        raise UserError(f"--vision-tower {folder} holds a {kind!r} model; give a CLIP")
    return clip.config_from_hf(hf)


def plan(state: Original, config: Config | ConnectorConfig) -> list[Fill]:
    """How the tensors fill the parameters: all of a whole model's but for a tower that is not there.

    Raises:
        UserError: see `plan.make_plan`.
    """
    if isinstance(config, ConnectorConfig):
        return make_plan(state, _projector_rules(config), (), _projector_shapes(state, config), "projector")
    assert isinstance(config, ModelConfig)
    tower = config.vision[0]
    rules = _projector_rules(config.connector)
    # A tied checkpoint may repeat its embedding as lm_head; CLIP's text half is not of the tower.
    ignored = [*llama.IGNORED, *((r"lm_head\.weight",) if config.llm.tie_embeddings else ())]
    if state.has_tower:
        rules += [rule.nested(f"vision/{tower.name}", (TOWER + "vision_model.", TOWER)) for rule in clip.rules(tower)]
        ignored += [re.escape(TOWER) + pattern for pattern in clip.IGNORED + clip.CONTRASTIVE]
    if config.tiling is not None:
        rules.append(Rule("image_newline", ("model.image_newline",)))
    rules += [rule.nested("llm", ("",)) for rule in llama.rules(config.llm)]
    shapes = {"/".join(path): leaf.shape for path, leaf in flatten_dict(abstract(config)).items()
              if state.has_tower or path[0] != "vision"}
    return make_plan(state, rules, ignored, shapes, "original LLaVA")


def open_projector(file: Path) -> tuple[Original, ConnectorConfig]:
    """(tensors, configuration) of the file that the original repository's stage 1 writes.

    The file says nothing of pictures: the grid is taken as 24 x 24 tokens (CLIP L/14 at 336 px).

    Raises:
        UserError: it holds no projector, or its widths do not follow on each other.
    """
    state = Original(Pickles(file))
    found = [re.fullmatch(r"(?:model\.)?mm_projector\.(?:\d+\.)?weight", name) for name in state]
    layers = sum(match is not None for match in found)
    if not layers:
        raise UserError(f"{file} holds no mm_projector; give mm_projector.bin, or the folder with config.json for a "
                        "whole model")
    shapes = _projector_shapes(state, ConnectorConfig(layers=layers))
    inner, width = (shapes[f"connector/linear_{i}/bias"][0] for i in (0, layers - 1))
    return state, ConnectorConfig(layers=layers, hidden=None if inner == width else inner)


def _projector_rules(config: ConnectorConfig) -> list[Rule]:
    """Linears are numbered 0, 2, 4 ... (activations lie between), or not at all in type linear."""
    if config.layers == 1:
        return linear("connector/linear_0", *PROJECTOR, *(f"{name}.0" for name in PROJECTOR))
    return [rule for i in range(config.layers)
            for rule in linear(f"connector/linear_{i}", *(f"{name}.{2 * i}" for name in PROJECTOR))]


def _projector_shapes(state: State, config: ConnectorConfig) -> dict[str, tuple[int, ...]]:
    """The parameters' shapes as the kernels give them; `make_plan` names what is missing or does not fit them."""
    shapes: dict[str, tuple[int, ...]] = {}
    width = None
    for rule in _projector_rules(config)[::2]:
        name = next((source for source in rule.sources if source in state), None)
        kernel = (0, 0) if name is None else state[name].shape[::-1]
        if len(kernel) != 2 or (name is not None and width not in (None, kernel[0])):
            raise UserError(f"tensor {name} of shape {kernel[::-1]} does not follow on one of {width} outputs; check "
                            "the file")
        width = None if name is None else kernel[1]
        shapes |= {rule.target: kernel, rule.target.replace("kernel", "bias"): (kernel[1],)}
    return shapes


# transformers' LLaVA names -> the original's, by their beginnings.
_NAMES = (("vision_tower.", TOWER), ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
          ("multi_modal_projector.linear_2.", "model.mm_projector.2."), ("image_newline", "model.image_newline"),
          ("language_model.", ""))


def original_name(name: str) -> str:
    """The original repository's name of a tensor that transformers' LLaVA calls `name`."""
    theirs, ours = next(pair for pair in _NAMES if name.startswith(pair[0]))
    return ours + name.removeprefix(theirs)


def config_to_hf(config: ModelConfig, tower: str | None = None) -> dict[str, Any]:
    """config.json of the original repository.

    Args:
        tower: mm_vision_tower, where the original's loader finds the tower; None = the published one of this shape.

    Raises:
        UserError: `tower` is None and no published tower has this shape.
    """
    own = config.vision[0]
    known = next((name for name, published in TOWERS.items()
                  if replace(own, name=published.name, feature_layer=published.feature_layer) == published), None)
    if tower is None and known is None:
        raise UserError("no published CLIP has the shape of this vision tower; name the folder that the original's "
                        "loader finds it in with --vision-tower")
    pictures: dict[str, Any] = {"image_aspect_ratio": "pad"}
    if config.tiling is not None:
        pictures = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
                    "image_grid_pinpoints": [[width, height] for height, width in config.tiling.pinpoints]}
    return {**llama.config_to_hf(config.llm), "model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"],
            "mm_vision_tower": tower or f"openai/{known}", "mm_hidden_size": own.width, "use_mm_proj": True,
            "mm_projector_type": f"mlp{config.connector.layers}x_gelu", "mm_vision_select_layer": own.feature_layer,
            "mm_vision_select_feature": "patch", "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
            **pictures}


def save_projector(file: Path, read: Callable[[str], np.ndarray], config: ConnectorConfig) -> None:
    """Writes mm_projector.bin, as the original repository's stage 1 does and its stage 2 reads it.

    Args:
        read: path below "connector/" -> parameter.

    Raises:
        UserError: torch is missing, or the connector is not a plain MLP.
    """
    if config.mix != "concat" or config.norm != "none" or config.merge != 1:
        raise UserError("mm_projector.bin holds a plain MLP on each patch; this connector mixes, merges or normalises")
    try:
        import torch
    except ImportError:
        raise UserError("writing mm_projector.bin needs torch: pip install 'spatialllm-jax[torch]'") from None

    def tensor(values: np.ndarray) -> Any:
        values = np.array(values, order="C")
        if values.dtype.name == "bfloat16":
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(values)

    rules = {rule.target.removeprefix("connector/"): rule for rule in _projector_rules(config)}
    torch.save({rule.sources[0]: tensor(rule.layout.to_torch(read(path))) for path, rule in rules.items()}, file)
