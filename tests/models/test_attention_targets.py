"""The kernel compiles for machines that are not here; needs JAX's plugins for them, libtpu and jax-cuda12-plugin."""

import importlib.util
import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from spatialllm_jax.models.attention import attention, platform, self_mask

A100 = '''gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 167936 threads_per_core_limit: 2048 core_count: 108 fpus_per_core: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 2039040000000
  l2_cache_size: 41943040 clock_rate_ghz: 1.41 device_memory_size: 85100068864 shared_memory_per_block_optin: 166912
  cuda_compute_capability { major: 8 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536 }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA A100-SXM4-80GB"'''
if sys.argv[1] == "gpu":
    devices = topologies.get_topology_desc(platform="cuda", topology_name="", topology="1x2x2", target_config=A100)
else:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
devices = np.array(devices.devices)[:4].reshape(1, 2, 2)
mesh = Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

def gradients(q, k, v, segments, branches, d_out):
    mask = self_mask(segments, branches) if sys.argv[2] == "rows" else None
    out, pull = jax.vjp(lambda *x: attention(*x, mask, "auto"), q, k, v)
    return out, pull(d_out)

with jax.set_mesh(mesh):
    rows, width, kv = (2048, 128, 8) if sys.argv[2] == "rows" else (577, 64, 16)
    heads = (4, rows, 32, width) if kv == 8 else (4, rows, 16, width)
    keys = (4, rows, kv, width)
    shaped = [jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P("fsdp")))
              for shape, dtype in [(heads, jnp.bfloat16), (keys, jnp.bfloat16), (keys, jnp.bfloat16),
                                   ((4, rows), jnp.int32), ((4, rows), jnp.int32), (heads, jnp.bfloat16)]]
    name = platform()
    lowered = jax.jit(gradients).trace(*shaped).lower(lowering_platforms=("cuda" if name == "gpu" else name,))
    compiled = lowered.compile()
print(name, compiled.memory_analysis().temp_size_in_bytes, compiled.as_text().count("custom-call("))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rows", "images"])
@pytest.mark.parametrize(("target", "plugin"), [
    ("gpu", "jax_cuda12_plugin"), ("v5e:2x2", "libtpu"), ("v4:2x2x1", "libtpu"), ("v5p:2x2x1", "libtpu")])
def test_flash_compiles_for(target, plugin, kind):
    """Forward and backward in bfloat16, rows over "fsdp" and heads over "tensor", and no [T, S] array."""
    if importlib.util.find_spec(plugin) is None:
        pytest.skip(f"needs {plugin}")
    result = subprocess.run([sys.executable, "-c", PROGRAM, target, kind], capture_output=True, text=True, check=False,
                            env={**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1",
                                 "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "XLA_FLAGS": ""})
    assert result.returncode == 0, result.stderr[-2000:]
    name, temporary, calls = result.stdout.split()[-3:]
    assert name == ("gpu" if target == "gpu" else "tpu") and int(calls) >= 3
    assert int(temporary) < 256e6, "scores of one device would be 2 x 16 x 2048 x 2048 x 4 bytes = 0.5 GB"
