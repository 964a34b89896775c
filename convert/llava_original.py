"""The original LLaVA repository's folders (LlavaLlamaForCausalLM) and its stage-1 file, mm_projector.bin.

A folder's tensors are a Llama's under its own names, "model.mm_projector.*", with anyres pictures
"model.image_newline", and, when the vision tower was trained, "model.vision_tower.vision_tower.*". Untrained
towers are only named (mm_vision_tower); they come from a CLIP folder, or stay out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convert import clip, llama
from convert.engine import to_jax
from convert.files import read_json
from convert.pickles import Pickles, open_checkpoint
from convert.rules import LINEAR
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import ConnectorConfig, ModelConfig, Tiling, VisionConfig
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.presets import CLIP_L_336

PROJECTOR = r"(?:.*\.)?mm_projector\."
TOWER = "model.vision_tower.vision_tower."
NEWLINE = "model.image_newline"
# The last part of mm_vision_tower -> the tower.
TOWERS = {"clip-vit-large-patch14-336": CLIP_L_336,
          "clip-vit-large-patch14": replace(CLIP_L_336, image_size=224)}


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


def load(folder: Path, config: ModelConfig, dtype: Any = np.float32, vision_tower: Path | None = None) -> Params:
    """The parameters of a folder in the original layout.

    Without the tower's tensors, and without `vision_tower`, those of connector and language model alone.

    Args:
        config: see `config_from_hf`.
        vision_tower: a transformers folder with a CLIP; its weights are taken when `folder` holds none.

    Raises:
        UserError: see `open_checkpoint` and `engine.to_jax`.
    """
    state = open_checkpoint(folder)
    names = {name for name in state if not re.match(PROJECTOR, name)}
    tower = {name for name in names if name.startswith(TOWER)}
    newline = names & {NEWLINE}
    params: Params = {"connector": projector(state, dtype)[0],
                      "llm": to_jax(Part(state, names - tower - newline), "llama", config.llm, dtype)}
    _check_projector(params["connector"], config)
    if newline or config.tiling is not None:
        if not newline or config.tiling is None or state[NEWLINE].shape != (config.llm.width,):
            raise UserError(f"{folder}: {NEWLINE} of shape [{config.llm.width}] and image_aspect_ratio \"anyres\" "
                            "belong together; check that config and checkpoint do")
        params["image_newline"] = np.asarray(state[NEWLINE], dtype)
    encoder = config.vision[0]
    if tower:
        params["vision"] = {encoder.name: to_jax(Part(state, tower, TOWER), "clip", encoder, dtype)}
    elif vision_tower is not None:
        params["vision"] = {encoder.name: to_jax(open_checkpoint(vision_tower), "clip", encoder, dtype)}
    return params


def load_projector(file: Path, dtype: Any = np.float32) -> tuple[Params, ConnectorConfig]:
    """({"linear_0": ...}, configuration) of the file that the original repository's stage 1 writes.

    The file says nothing of pictures: the grid is taken as 24 x 24 tokens (CLIP L/14 at 336 px).

    Raises:
        UserError: it holds no projector, or something besides.
    """
    state = Pickles(file)
    others = sorted(name for name in state if not re.match(PROJECTOR, name))
    if others:
        raise UserError(f"{file} holds {others[0]}, which is no part of a projector; give mm_projector.bin, or the "
                        "folder with config.json for a whole model")
    return projector(state, dtype)


def projector(state: Mapping[str, np.ndarray], dtype: Any = np.float32) -> tuple[Params, ConnectorConfig]:
    """The connector among the tensors of `state`, widths as they are.

    Linears are numbered 0, 2, 4 ... (activations lie between), or not at all when there is one.

    Raises:
        UserError: there is none, one of its tensors is missing, or the widths do not follow on each other.
    """
    names: dict[str, str] = {}
    for name in state:
        if found := re.match(PROJECTOR, name):
            stem = name[found.end():]
            if stem in names:
                raise UserError(f"the checkpoint holds mm_projector.{stem} twice: {names[stem]} and {name}; keep one")
            names[stem] = name
    count = len({name.partition(".")[0] for name in names if "." in name})
    stems = [f"{2 * i}." for i in range(count)] or [""]
    wanted = {stem + part for stem in stems for part in ("weight", "bias")}
    if wanted != set(names):
        raise UserError("the checkpoint's mm_projector does not fit: missing "
                        f"{', '.join(sorted(wanted - set(names))) or 'nothing'}; left over "
                        f"{', '.join(sorted(set(names) - wanted)) or 'nothing'}; check that it is linear or mlpNx_gelu")
    params: Params = {}
    width = None
    for i, stem in enumerate(stems):
        weight, bias = state[names[f"{stem}weight"]], state[names[f"{stem}bias"]]
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or width not in (None, weight.shape[1]):
            raise UserError(f"the checkpoint's mm_projector.{stem}weight has shape {weight.shape} and its bias "
                            f"{bias.shape}, which do not follow on each other; check the file")
        width = weight.shape[0]
        params[f"linear_{i}"] = {"kernel": np.asarray(LINEAR.to_jax(weight), dtype, order="C"),
                                 "bias": np.asarray(bias, dtype)}
    inner = params["linear_0"]["bias"].shape[0]
    return params, ConnectorConfig(layers=len(stems), hidden=None if inner == width else inner)


def _check_projector(params: Params, config: ModelConfig) -> None:
    shapes = [linear["kernel"].shape for linear in params.values()]
    expected = [(config.vision[0].width if i == 0 else config.llm.width, config.llm.width)
                for i in range(config.connector.layers)]
    if shapes != expected:
        raise UserError(f"the checkpoint's mm_projector has kernels of {shapes} but config.json speaks of {expected}; "
                        "check that config and checkpoint belong together")


class Part(Mapping[str, np.ndarray]):
    """Some tensors of a lazy mapping, their names without a prefix."""

    def __init__(self, state: Mapping[str, np.ndarray], names: set[str], prefix: str = "") -> None:
        self._state, self._names = state, {name.removeprefix(prefix): name for name in sorted(names)}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._state[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
