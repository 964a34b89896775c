"""Settings per platform: nothing of the user's is overridden, CPUs are left alone, and XLA knows every flag."""

import importlib.util
import os
import subprocess
import sys

import pytest

from spatialllm_jax.parallel import xla_flags


def test_what_the_user_set_stays():
    plain = xla_flags.settings("gpu", {})
    assert plain["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9" and plain["JAX_OPTIMIZATION_LEVEL"] == "O1"
    assert f"--xla_gpu_all_gather_combine_threshold_bytes={1 << 30}" in plain["XLA_FLAGS"].split()
    mine = {"XLA_FLAGS": "--xla_gpu_all_gather_combine_threshold_bytes=7 --xla_dump_to=here",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    found = xla_flags.settings("gpu", mine)
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in found
    assert found["XLA_FLAGS"].startswith(mine["XLA_FLAGS"]) and found["XLA_FLAGS"].count("all_gather") == 1
    assert xla_flags.settings("gpu", {**mine, **found}) == {}, "applied twice, nothing changes"
    assert "async_collective_fusion=true" in xla_flags.settings("tpu", {})["LIBTPU_INIT_ARGS"]


def test_cpus_are_left_alone(monkeypatch):
    environ = {"JAX_PLATFORMS": "cpu", "HOME": "/home/me"}
    xla_flags.apply(environ=environ)
    assert environ == {"JAX_PLATFORMS": "cpu", "HOME": "/home/me"}


def test_cache_folder():
    assert xla_flags.cache_folder(None, "cpu", {}) == ""
    assert xla_flags.cache_folder(None, "gpu", {"XDG_CACHE_HOME": "/c"}) == "/c/spatialllm-jax/xla"
    assert xla_flags.cache_folder(None, "gpu", {xla_flags.CACHE: "/mine"}) == "/mine"
    assert xla_flags.cache_folder("none", "gpu", {xla_flags.CACHE: "/mine"}) == ""
    assert xla_flags.cache_folder("/here", "cpu", {}) == "/here"


@pytest.mark.parametrize(("named", "platform"), [("cuda", "gpu"), ("tpu,cpu", "tpu"), ("cpu", "cpu")])
def test_expected_platform(named, platform):
    assert xla_flags.expected_platform({"JAX_PLATFORMS": named}) == platform


def test_compiled_programs_are_kept(tmp_path):
    """XLA ends a process that is given a flag it does not know: this one goes on, and fills the cache."""
    folder = str(tmp_path / "cache")
    program = (f"from spatialllm_jax.parallel import xla_flags; xla_flags.apply({folder!r}); import jax;"
               "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0);"
               "print(jax.jit(lambda x: x + 1)(1), jax.config.jax_optimization_level)")
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **xla_flags.settings("gpu", {})}
    result = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["2", "O1"] and list((tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_libtpu_knows_its_flags():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu")
    program = ("from jax.experimental import topologies; import jax, jax.numpy as jnp;"
               "topology = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2'); print('known')")
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
               **xla_flags.settings("tpu", {})}
    result = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "known", result.stderr[-500:]
