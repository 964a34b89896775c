"""What a compiled program does in one step on one device: matrix products, memory traffic, collectives.

Loops are multiplied out by their trip counts, and of a conditional the dearest branch counts. Counted as operations are
dots, convolutions, cuBLAS's calls and the attention kernels of `KERNELS`; elementwise work, reductions, exponentials
and what other custom kernels do are not. Memory traffic is what every kernel reads and writes once, as if nothing
stayed in a cache.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np

from spatialllm_jax.planning.hlo import Computation, Instruction, Module, Shape, attribute, trip_count

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all",
               "collective-broadcast")
# Attention kernels by name -> matrix products of [T, T, D] that they do for each head: scores and values forward; in
# the backward pass the scores again, the gradients of probabilities, queries, keys, values, split over kernels.
KERNELS: tuple[tuple[str, int], ...] = (
    (r"fmha.*Backward|fmha_bwd", 5),
    (r"fmha", 2),
    (r"splash.*dkv_dq|dkv_fused|mha_backward", 5),
    (r"flash_dkv|splash.*dkv|_dkv", 4),
    (r"flash_dq|splash.*dq|_dq\b", 3),
    (r"flash_forward|mha_forward|splash", 2),
)
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
         "opt-barrier", "domain", "add-dependency", "iota"}
_SLICES = ("dynamic-slice", "slice", "gather")
_THROUGH = ("bitcast", "reshape", "copy", "convert", "transpose")


@dataclasses.dataclass(frozen=True)
class Work:
    """One kernel (or collective), and how often it runs in a step.

    Attributes:
        name: of the instruction.
        times: runs per step.
        flops: of one run, on one device.
        bytes: read and written in one run, on one device.
        dtype: of the matrix product's first factor, or "".
        collective: kind, or "".
        payload: bytes of the whole tensor that a collective gathers, reduces or sends, per run.
        sent: bytes that each device sends in a run, by the ring algorithm.
        group: devices that take part.
        kernel: whether the operations are those of a custom kernel of `KERNELS`.
        channel: number by which a collective's parts know each other, or "".
    """

    name: str
    times: int
    flops: float = 0.0
    bytes: float = 0.0
    dtype: str = ""
    collective: str = ""
    payload: float = 0.0
    sent: float = 0.0
    group: int = 1
    kernel: bool = False
    channel: str = ""


@dataclasses.dataclass(frozen=True)
class StepWork:
    """All of a step's work on one device.

    Attributes:
        work: in no particular order.
        unknown_loops: loops whose trip count the program does not say, counted once.
        unknown_kernels: targets of custom calls that may compute and are not counted.
    """

    work: tuple[Work, ...]
    unknown_loops: tuple[str, ...]
    unknown_kernels: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Operations of a step on one device."""
        return sum(work.times * work.flops for work in self.work)

    @property
    def bytes(self) -> float:
        """Memory traffic of a step on one device."""
        return sum(work.times * work.bytes for work in self.work)

    def collectives(self) -> dict[str, dict[str, float]]:
        """Kind -> number of runs, bytes of the tensors, bytes that each device sends; all in one step."""
        found: dict[str, dict[str, float]] = {}
        for work in self.work:
            if work.collective:
                entry = found.setdefault(work.collective, {"number": 0, "bytes": 0.0, "sent": 0.0})
                entry["number"] += work.times
                entry["bytes"] += work.times * work.payload
                entry["sent"] += work.times * work.sent
        return dict(sorted(found.items()))


def step_work(module: Module, devices: int, attention_length: int = 0) -> StepWork:
    """Reads the work of one step from a program.

    Args:
        devices: of the mesh.
        attention_length: positions of a row: attention kernels over as many are causal.
    """
    reader = _Reader(module, devices, attention_length)
    return StepWork(tuple(reader.computation(module.entry)), tuple(sorted(reader.loops)),
                    tuple(sorted(reader.kernels)))


class _Reader:
    def __init__(self, module: Module, devices: int, length: int):
        self.module, self.devices, self.length = module, devices, length
        self.loops: set[str] = set()
        self.kernels: set[str] = set()
        self.computation = functools.lru_cache(maxsize=None)(self._computation)

    def _computation(self, name: str) -> list[Work]:
        computation = self.module.computations[name]
        found, seen = [], set()
        for instruction in computation.instructions.values():
            for work in self._instruction(instruction, computation):
                # TPUs spread an asynchronous collective over several fusions, each of which names it.
                if work.channel and work.channel in seen:
                    continue
                seen.add(work.channel)
                found.append(work)
        return found

    def _instruction(self, one: Instruction, within: Computation) -> list[Work]:
        kind = one.opcode.removesuffix("-start")
        if one.opcode == "while":
            trips = trip_count(one, self.module, within)
            if trips is None:
                self.loops.add(one.name)
            return [dataclasses.replace(work, times=work.times * (1 if trips is None else trips))
                    for work in self.computation(one.calls["body"])]
        if one.opcode == "conditional":
            branches = [self.computation(name) for role, name in one.calls.items() if role.startswith("branch")]
            return list(max(branches, key=lambda works: (sum(w.times * w.flops for w in works),
                                                         sum(w.times * w.bytes for w in works)), default=[]))
        if one.opcode in ("call", "async-start"):
            called = one.calls.get("to_apply") or one.calls.get("calls")
            return list(self.computation(called)) if called else []
        if kind in COLLECTIVES:
            return [self._collective(kind, one, within)]
        if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
            return []
        if one.opcode == "fusion":
            return self._fusion(one)
        flops, dtype, kernel = self._flops(one, within)
        return [Work(one.name, 1, flops, self._bytes(one, within), dtype, kernel=kernel)]

    def _fusion(self, one: Instruction) -> list[Work]:
        """A fusion is one kernel; collectives within (TPUs) stand beside it."""
        fused = self.module.computations[one.calls["calls"]]
        inner = [work for instruction in fused.instructions.values() for work in self._instruction(instruction, fused)]
        collectives = [work for work in inner if work.collective]
        if collectives and re.search(r"all-reduce-scatter|reduce-scatter", one.name):
            # TPUs fuse an all-reduce with taking one's own part of it.
            collectives = [self._as_scatter(work) for work in collectives]
        products = [work for work in inner if work.flops and not work.collective]
        flops = sum(work.times * work.flops for work in products)
        dtype = max(products, key=lambda work: work.flops).dtype if products else ""
        # Beside a collective the fusion hands its buffers on, which moves nothing: the products' own traffic counts.
        moved = sum(work.times * work.bytes for work in products) if collectives else _fusion_bytes(fused)
        return [*collectives, Work(one.name, 1, flops, moved, dtype, kernel=any(work.kernel for work in products))]

    def _as_scatter(self, work: Work) -> Work:
        if work.collective != "all-reduce":
            return work
        return dataclasses.replace(work, collective="reduce-scatter", sent=work.sent / 2)

    def _flops(self, one: Instruction, within: Computation) -> tuple[float, str, bool]:
        if one.opcode == "dot":
            left = _shape(one.operands[0], within)
            inner = math.prod(left.sizes[axis] for axis in attribute(one, "lhs_contracting_dims"))
            return 2.0 * one.shapes[0].elements * inner, left.dtype, False
        if one.opcode == "convolution":
            left, right = (_shape(name, within) for name in one.operands[:2])
            return convolution_flops(one, left, right), left.dtype, False
        if one.opcode != "custom-call":
            return 0.0, "", False
        if "lhs_contracting_dimensions" in one.attributes:      # cuBLAS; the second result is its workspace
            left = _shape(one.operands[0], within)
            inner = math.prod(left.sizes[axis] for axis in attribute(one, "lhs_contracting_dimensions"))
            return 2.0 * one.shapes[0].elements * inner, left.dtype, False
        target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
        name = target[1] if target else ""
        told = " ".join((name, one.name, *re.findall(r'(?:op_name|name|kernel_name)\\*"?[=:]\s*\\*"([^"\\]*)',
                                                     one.attributes)))
        for pattern, products in KERNELS:
            if re.search(pattern, told) and one.operands:
                # Queries [B, H, T, D]: each product is 2 T^2 D per head. Rows of text skip the half that causality
                # hides; patches of images see each other all.
                queries = max((_shape(operand, within) for operand in one.operands), key=lambda shape: shape.elements)
                length = max(queries.sizes[-3:-1])
                share = 0.5 if length == self.length else 1.0
                return share * products * 2.0 * queries.elements * length, queries.dtype, True
        if re.search("triton|tpu_custom_call|cudnn|mosaic|matmul|ynn", name):
            self.kernels.add(name)
        return 0.0, "", False

    def _bytes(self, one: Instruction, within: Computation) -> float:
        if one.opcode in _SLICES:
            return 2.0 * one.traffic
        if one.opcode == "dynamic-update-slice":
            return 2.0 * _traffic(one.operands[1], within)
        if one.opcode == "broadcast":
            return float(one.traffic)
        if one.opcode == "copy-start":      # its result is (copy, source, context)
            return float(_traffic(one.operands[0], within) + (0 if one.shapes[0].near else one.shapes[0].bytes))
        return float(one.traffic + sum(_traffic(name, within) for name in one.operands))

    def _collective(self, kind: str, one: Instruction, within: Computation) -> Work:
        given = float(sum(_bytes_of(name, within) for name in one.operands))
        n = group_size(one, self.devices)
        payload = given * n if kind == "all-gather" else given
        share = (n - 1) / n
        sent = {"all-gather": payload * share, "all-reduce": 2 * payload * share, "reduce-scatter": payload * share,
                "all-to-all": payload * share, "ragged-all-to-all": payload * share}.get(kind, payload)
        channel = re.search(r"channel_id=(\d+)", one.attributes)
        return Work(one.name, 1, collective=kind, payload=payload, sent=sent, group=n,
                    channel=channel[1] if channel else "")


def _shape(name: str, within: Computation) -> Shape:
    return within.instructions[name].shapes[0]


def _bytes_of(name: str, within: Computation) -> int:
    return within.instructions[name].bytes if name in within.instructions else 0


def _traffic(name: str, within: Computation) -> int:
    return within.instructions[name].traffic if name in within.instructions else 0


def _fusion_bytes(fused: Computation) -> float:
    """Reads and writes of a fused kernel: the slices of what it only slices, the update of what it updates in place."""
    total = 0.0
    for parameter in fused.instructions.values():
        if parameter.opcode == "parameter":
            total += _read(parameter, fused)
    return total + _written(fused.root, fused)


def _read(source: Instruction, fused: Computation) -> float:
    whole, total = float(source.traffic), 0.0
    for user in fused.users(source.name):
        if user.opcode in _SLICES and user.operands[0] == source.name:
            total += user.traffic
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == source.name:
            continue
        elif user.opcode in _THROUGH:
            total += _read(user, fused) * source.traffic / max(user.traffic, 1)
        else:
            return whole
    return min(total, whole)


def _written(root: Instruction, fused: Computation) -> float:
    if root.opcode == "tuple":
        return sum(_written(fused.instructions[name], fused) for name in root.operands)
    inner = root
    while inner.opcode in _THROUGH and inner.operands[0] in fused.instructions:
        inner = fused.instructions[inner.operands[0]]
    if inner.opcode == "dynamic-update-slice":
        return float(_traffic(inner.operands[1], fused))
    return float(root.traffic)


def group_size(one: Instruction, devices: int) -> int:
    """Number of devices that exchange data in a collective, from any of the three ways to write it."""
    text = one.attributes
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        named = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, _, part in named)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(listed[1].split(","))
    return devices


def convolution_flops(one: Instruction, left: Shape, right: Shape) -> float:
    """Two operations per output element, input feature and kernel position that lies on a real input.

    TPUs write batched products as convolutions whose window meets only padding or the holes of a dilation but for one
    place: counting whole windows would multiply them by the batch.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert labels is not None
    inputs, kernels, outputs = labels[1], labels[2], labels[3]
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", one.attributes) or ["", ""])[1]))
    places = 1.0
    spatial = sorted(label for label in outputs if label.isdigit())
    for index, label in enumerate(spatial):
        def part(key: str, default: str, index: int = index) -> str:
            return window[key].split("x")[index] if key in window else default

        low = int(part("pad", "0_0").split("_")[0])
        size = int(part("size", "1"))
        places *= _valid_places(
            one.shapes[0].sizes[outputs.index(label)], size, left.sizes[inputs.index(label)], low,
            int(part("stride", "1")), int(part("lhs_dilate", "1")), int(part("rhs_dilate", "1")))
    features = right.sizes[kernels.index("i")]      # per group already
    batch = one.shapes[0].sizes[outputs.index("b")]
    return 2.0 * places * features * batch * one.shapes[0].sizes[outputs.index("f")]


def _valid_places(output: int, size: int, source: int, low: int, stride: int, holes: int, spread: int) -> int:
    """(output position, kernel position) pairs that read a real input along one axis."""
    at = np.arange(output)[:, None] * stride + np.arange(size)[None] * spread - low
    return int(((at >= 0) & (at < (source - 1) * holes + 1) & (at % holes == 0)).sum())
