"""Machines that steps can be compiled for without having them: their figures, and where these come from.

Peaks, memory and bandwidth are the vendors' data sheets (NVIDIA A100 and H100; Google Cloud's pages of each TPU), GPU
details those that XLA ships for the same cards (openxla/xla, xla/backends/gpu/target_config/specs). TPU memory is what
its compiler allows a program, links are one-way figures per chip as in "How to Scale Your Model" (jax-ml.github.io).
Shares are assumptions about what software reaches of these peaks, and flags of `launch.plan`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.flops import PEAKS

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Shares:
    """Assumptions of the roofline: what is reached of the peaks.

    Attributes:
        compute: of the peak FLOP/s, in matrix products of a training step's size.
        bandwidth: of the memory bandwidth, in everything else.
        link: of the link bandwidth, in collectives of many megabytes.
        overlap: share of the collectives' time that can hide behind computation.
    """

    compute: float = 0.8
    bandwidth: float = 0.85
    link: float = 0.75
    overlap: float = 0.8


@dataclasses.dataclass(frozen=True)
class Machine:
    """One kind of accelerator.

    Attributes:
        name: as in `--target`.
        platform: "cuda", "tpu" or "cpu", as JAX lowers for it.
        kind: of the device, for people.
        memory: bytes of a device that a program and what it does not see may take.
        headroom: bytes of `memory` that the compiled program does not account for.
        peak: dense bfloat16 FLOP/s; 0 where no estimate is made.
        float32: share of `peak` that float32 matrix products run at (TF32 on GPUs; TPUs round to bfloat16).
        bandwidth: memory bytes/s.
        link: bytes/s that a device sends to the devices of its host or slice.
        network: bytes/s that a device sends beyond its host; 0 where `link` is all there is.
        per_host: devices that `link` reaches.
        shares: assumptions.
        gpu: fields of XLA's description of a GPU.
    """

    name: str
    platform: str
    kind: str
    memory: int = 0
    headroom: int = 0
    peak: float = 0.0
    float32: float = 1.0
    bandwidth: float = 0.0
    link: float = 0.0
    network: float = 0.0
    per_host: int = 0
    shares: Shares = Shares()
    gpu: tuple[tuple[str, Any], ...] = ()


# A CUDA context takes 0.5 GiB, NCCL's buffers and the workspaces of cuBLAS and cuDNN 1 to 2, and JAX's allocator loses
# some to fragmentation: none of it is in a compiled program.
_GPU_HEADROOM = 5 * GIB
_A100 = (("major", 8), ("feature_extension", "NONE"), ("core_count", 108), ("fpus_per_core", 64),
         ("shared_memory_per_core", 167936), ("shared_memory_per_block_optin", 166912), ("l2_cache_size", 41943040),
         ("clock_rate_ghz", 1.41))
_H100 = (("major", 9), ("feature_extension", "ACCELERATED_FEATURES"), ("core_count", 132), ("fpus_per_core", 128),
         ("shared_memory_per_core", 233472), ("shared_memory_per_block_optin", 232448), ("l2_cache_size", 52428800),
         ("clock_rate_ghz", 1.98))

MACHINES = {machine.name: machine for machine in (
    # NVLink: 600 and 900 GB/s in both directions together; beyond the host, one 200 or 400 Gb/s port per GPU (DGX).
    Machine("a100-80gb", "cuda", "NVIDIA A100-SXM4-80GB", 85100068864, _GPU_HEADROOM, PEAKS["NVIDIA A100"], 0.5,
            2.039e12, 300e9, 25e9, 8, Shares(compute=0.8), _A100),
    Machine("a100-40gb", "cuda", "NVIDIA A100-SXM4-40GB", 42331013120, _GPU_HEADROOM, PEAKS["NVIDIA A100"], 0.5,
            1.5552e12, 300e9, 25e9, 8, Shares(compute=0.8), _A100),
    # A H100 under full load lowers its clock: 70 to 80 % of 989 TFLOP/s is what large products are seen to reach.
    Machine("h100", "cuda", "NVIDIA H100 80GB HBM3", 84942979072, _GPU_HEADROOM, PEAKS["NVIDIA H100"], 0.5,
            3.35232e12, 450e9, 50e9, 8, Shares(compute=0.7), _H100),
    # ICI: both directions of one axis of the torus, which is what a ring over that axis uses.
    Machine("v4", "tpu", "TPU v4", int(30.75 * GIB), 0, PEAKS["TPU v4"], 1.0, 1.228e12, 90e9),
    Machine("v5e", "tpu", "TPU v5e", int(15.75 * GIB), 0, PEAKS["TPU v5e"], 1.0, 0.819e12, 90e9),
    Machine("v5p", "tpu", "TPU v5p", int(95.7 * GIB), 0, PEAKS["TPU v5p"], 1.0, 2.765e12, 180e9),
    Machine("v6e", "tpu", "TPU v6e", int(31.25 * GIB), 0, PEAKS["TPU v6e"], 1.0, 1.640e12, 180e9),
    # Fake devices: shows shardings and what devices hold, not whether it fits or how fast it is.
    Machine("cpu", "cpu", "CPU"),
)}


@dataclasses.dataclass(frozen=True)
class Target:
    """So many devices of a machine.

    Attributes:
        machine: of which kind.
        shape: number of devices, or a TPU topology ("8x8").
    """

    machine: Machine
    shape: str

    def __str__(self) -> str:
        return f"{self.machine.name}:{self.shape}"

    @property
    def budget(self) -> int | None:
        """Bytes that a compiled step may take on a device; None where that is not known."""
        return self.machine.memory - self.machine.headroom if self.machine.memory else None


def parse(text: str, headroom: float | None = None) -> Target:
    """"a100-80gb:8" or "v5e:8x8" as a `Target`.

    Args:
        headroom: GiB instead of the machine's.

    Raises:
        UserError: no such machine, or a shape it cannot have.
    """
    name, _, shape = text.partition(":")
    if name not in MACHINES:
        near = difflib.get_close_matches(name, MACHINES, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(MACHINES)}"
        raise UserError(f"--target {text}: there is no machine {name!r}; {hint}")
    machine = MACHINES[name]
    sizes = shape.split("x")
    if not all(size.isdigit() and int(size) > 0 for size in sizes) or (machine.platform != "tpu" and len(sizes) > 1):
        shapes = {"v4": "2x2x1", "v5p": "2x2x1", "v5e": "4x4", "v6e": "4x4"}
        example = f"{name}:{shapes.get(name, '8')}"
        raise UserError(f"--target {text}: {shape!r} is not a number of devices or a topology; write {example}")
    if machine.platform == "cuda" and int(shape) > machine.per_host and int(shape) % machine.per_host:
        raise UserError(f"--target {text}: hosts have {machine.per_host} GPUs; take a multiple of that, or fewer")
    if headroom is not None:
        machine = dataclasses.replace(machine, headroom=int(headroom * GIB))
    return Target(machine, shape)


def prepare(target: Target) -> None:
    """Sets what JAX and the compilers read from the environment; before anything imports JAX.

    The process runs on its CPU, whatever it compiles for, and asks no metadata server which TPU it is on.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    if target.machine.platform == "cpu":
        flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split()
                 if not flag.startswith("--xla_force_host_platform_device_count")]
        os.environ["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={target.shape}"])


def devices(target: Target) -> list[Any]:
    """The target's devices: real ones for "cpu", otherwise descriptions that a compiler takes.

    Raises:
        UserError: the compiler is not installed, or does not know the topology.
    """
    find: dict[str, Callable[[Target], list[Any]]] = {"cpu": _cpus, "cuda": _gpus, "tpu": _tpus}
    return find[target.machine.platform](target)


def _cpus(target: Target) -> list[Any]:
    import jax

    found = jax.devices("cpu")
    if len(found) < int(target.shape):
        raise UserError(f"--target {target}: this process has {len(found)} CPU devices; start it with "
                        f"XLA_FLAGS=--xla_force_host_platform_device_count={target.shape}")
    return found[:int(target.shape)]


def _gpus(target: Target) -> list[Any]:
    _need("jax_plugins.xla_cuda12", target, "plan-gpu")
    per_host = min(int(target.shape), target.machine.per_host)
    topology = f"1x{int(target.shape) // per_host}x{per_host}"
    return _described(target, platform="cuda", topology_name="", topology=topology,
                      target_config=gpu_config(target.machine))


def _tpus(target: Target) -> list[Any]:
    _need("libtpu", target, "plan-tpu")
    # A v4 chip's two cores are one device to JAX only in this configuration.
    options = {"chip_config_name": "megacore"} if target.machine.name == "v4" else {}
    return _described(target, platform="tpu", topology_name=f"{target.machine.name}:{target.shape}", **options)


def _described(target: Target, **options: Any) -> list[Any]:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(**options).devices)
    except Exception as error:      # whatever the plugin raises: JaxRuntimeError, ValueError, NotImplementedError
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--target {target}: the compiler for {target.machine.kind} refuses it ({first}); check the "
                        "shape, and that the plugins' versions are those of jax") from None


def _need(module: str, target: Target, extra: str) -> None:
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise UserError(f"--target {target} needs the compiler of extra [{extra}], and {module} cannot be imported; "
                        f'pip install -c constraints.txt -e ".[{extra}]"')


def gpu_config(machine: Machine) -> str:
    """XLA's `GpuTargetConfigProto` of a GPU, as text."""
    fields = dict(machine.gpu)
    capability = f"major: {fields.pop('major')} feature_extension: {fields.pop('feature_extension')}"
    common = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048,
        "shared_memory_per_block": 49152, "block_dim_limit_x": 2147483647, "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535, "thread_dim_limit_x": 1024, "thread_dim_limit_y": 1024, "thread_dim_limit_z": 64,
        "registers_per_core_limit": 65536, "registers_per_block_limit": 65536, "device_address_bits": 64,
        "memory_bandwidth": int(machine.bandwidth), "device_memory_size": machine.memory, **fields}
    strings = {"device_vendor": "NVIDIA Corporation", "name": machine.kind, "driver_version": "13.0.0",
               "runtime_version": "12.9.0", "compile_time_toolkit_version": "12.9.0", "dnn_version": "9.10.0"}
    lines = [f"cuda_compute_capability {{ {capability} }}", *(f"{key}: {value}" for key, value in common.items()),
             *(f'{key}: "{value}"' for key, value in strings.items()), "ecc_enabled: true"]
    return (f"gpu_device_info {{ {' '.join(lines)} }} platform_name: \"CUDA\" "
            "dnn_version_info { major: 9 minor: 10 patch: 0 } "
            f"device_description_str: \"{machine.kind}\"")
