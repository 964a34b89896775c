"""SpatialLLM in JAX: 3D-informed data, mixed vision encoders, staged training, spatial evaluation."""

__version__ = "0.1.0"
