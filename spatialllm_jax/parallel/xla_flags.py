"""What XLA is told on each platform, in one place; applied by the commands before JAX starts.

Nothing that the environment already says is overridden, and on CPUs nothing is set at all.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from absl import logging

# Collectives are combined up to this size. A layer of Llama-3-8B is 218 million weights, 0.44 GB in bfloat16 and 0.87
# in float32: with less, its matrices would travel one by one, and small messages leave most of NVLink unused.
COMBINE_BYTES = 1 << 30

# Flags of XLA itself (XLA_FLAGS) and of the TPU's own compiler (LIBTPU_INIT_ARGS), by name.
XLA_FLAGS: dict[str, dict[str, str]] = {
    "gpu": {f"xla_gpu_{collective}_combine_threshold_bytes": str(COMBINE_BYTES)
            for collective in ("all_gather", "reduce_scatter", "all_reduce")},
}
LIBTPU_INIT_ARGS: dict[str, dict[str, str]] = {
    # All-gathers of the next layer's weights run beside this layer's products, in several steps.
    "tpu": dict.fromkeys(("xla_enable_async_all_gather", "xla_tpu_enable_async_collective_fusion",
                          "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
                          "xla_tpu_enable_async_collective_fusion_multiple_steps",
                          "xla_tpu_overlap_compute_collective_tc"), "true"),
}
# Other variables.
VARIABLES: dict[str, dict[str, str]] = {
    # O1 switches on the latency-hiding scheduler and what belongs to it. JAX takes 0.75 of the memory by itself; the
    # tenth left to others holds NCCL's buffers and the CUDA context.
    "gpu": {"JAX_OPTIMIZATION_LEVEL": "O1", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"},
}
CACHE = "JAX_COMPILATION_CACHE_DIR"


def settings(platform: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables to set for a platform ("cpu", "gpu", "tpu"), given those that are set."""
    found = {name: value for name, value in VARIABLES.get(platform, {}).items() if name not in environ}
    for variable, flags in (("XLA_FLAGS", XLA_FLAGS), ("LIBTPU_INIT_ARGS", LIBTPU_INIT_ARGS)):
        said = environ.get(variable, "").split()
        names = {flag.lstrip("-").partition("=")[0].removeprefix("no") for flag in said}
        missing = [f"--{name}={value}" for name, value in flags.get(platform, {}).items() if name not in names]
        if missing:
            found[variable] = " ".join(said + missing)
    return found


def cache_folder(asked: str | None, platform: str, environ: Mapping[str, str]) -> str:
    """Where compiled programs are kept from one process to the next; "" for nowhere.

    Args:
        asked: a folder, "none", or None: what the environment says, otherwise on accelerators a folder under the user's
            cache. Programs for CPUs compile in seconds and are kept only when a folder is named.
    """
    if asked is not None:
        return "" if asked == "none" else asked
    if platform == "cpu" or CACHE in environ:
        return environ.get(CACHE, "")
    return str(Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spatialllm-jax" / "xla")


def expected_platform(environ: Mapping[str, str]) -> str:
    """The platform that JAX will choose, as far as can be told without starting it."""
    if named := environ.get("JAX_PLATFORMS", "").split(",")[0].strip():
        return {"cuda": "gpu", "rocm": "gpu"}.get(named, named)
    if _installed("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
        return "tpu"
    if (_installed("jax_cuda12_plugin") or _installed("jax_cuda13_plugin")) and glob.glob("/dev/nvidia[0-9]*"):
        return "gpu"
    return "cpu"


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def apply(cache: str | None = None, environ: MutableMapping[str, str] | None = None) -> None:
    """Sets up this process's environment, before JAX starts.

    Args:
        cache: see `cache_folder`.
        environ: instead of the process's.
    """
    environ = os.environ if environ is None else environ
    platform = expected_platform(environ)
    for name, value in settings(platform, environ).items():
        environ[name] = value
        logging.info("%s=%s", name, value)
    folder = cache_folder(cache, platform, environ)
    if folder != environ.get(CACHE, ""):
        environ[CACHE] = folder
        if "jax" in sys.modules:    # it has read the environment already
            sys.modules["jax"].config.update("jax_compilation_cache_dir", folder or None)
