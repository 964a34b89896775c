"""Synthetic scenes with exact 3D boxes: procedural or Sweet Home 3D objects in a room or on a street."""

from spatialllm_jax.sources.rendered.config import RenderConfig
from spatialllm_jax.sources.rendered.source import RenderedScene, iter_scenes, render

__all__ = ["RenderConfig", "RenderedScene", "iter_scenes", "render"]
