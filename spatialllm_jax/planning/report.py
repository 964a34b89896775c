"""What a plan says: one table of plain values, and the same as text."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

from spatialllm_jax.planning.lowering import Compiled, Job
from spatialllm_jax.planning.roofline import Estimate
from spatialllm_jax.planning.search import Largest
from spatialllm_jax.planning.targets import GIB, Shares

# Versions that the figures depend on.
_PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12", "flax")


def versions() -> dict[str, str]:
    """Package -> version of what is installed of all that shapes a plan."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def as_values(job: Job, compiled: Compiled, shares: Shares, roofline: Estimate | None, largest: Largest | None,
              suggestions: list[str]) -> dict[str, Any]:
    """Everything a plan found, as what JSON holds: bytes, seconds, operations; per device where not said otherwise."""
    stage, target, step = job.stage, job.target, compiled.step
    devices = job.mesh.size
    executed = None if step is None else step.flops * devices
    return {
        "target": str(target), "device": target.machine.kind, "devices": devices, "row": job.config.get("row", ""),
        "stage": stage.name, "mesh": dict(job.mesh.shape), "rows": job.rows, "accumulate": stage.accumulate,
        "batch_size": stage.rows.batch_size, "length": stage.rows.length, "images": stage.rows.images,
        "samples_per_row": job.samples_per_row, "attention": job.model.attention, "remat": job.model.remat,
        "moment_dtype": stage.optimizer.moment_dtype,
        "fits": None if target.budget is None else compiled.used <= target.budget,
        "memory": {"peak": compiled.used, "budget": target.budget, "headroom": target.machine.headroom,
                   **({} if compiled.memory is None else dataclasses.asdict(compiled.memory))},
        "flops": {"useful": compiled.useful, "executed": executed,
                  "ratio": None if executed is None or not compiled.useful else executed / compiled.useful,
                  "kernels": None if step is None else devices * sum(
                      work.times * work.flops for work in step.work if work.kernel),
                  "unknown_loops": [] if step is None else list(step.unknown_loops),
                  "not_counted": [] if step is None else list(step.unknown_kernels)},
        "collectives": {} if step is None else step.collectives(),
        "involuntary_rematerializations": compiled.involuntary,
        "program": {"instructions": compiled.instructions, "text": compiled.text,
                    "lower_seconds": round(compiled.lower_seconds, 1),
                    "compile_seconds": round(compiled.compile_seconds, 1)},
        "roofline": None if roofline is None else dataclasses.asdict(roofline),
        "assumptions": dataclasses.asdict(shares),
        "largest": None if largest is None else dataclasses.asdict(largest),
        "suggestions": suggestions, "versions": versions()}


def as_text(plan: dict[str, Any]) -> str:
    """The same for people."""
    memory, flops, program = plan["memory"], plan["flops"], plan["program"]
    mesh = " ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    lines = [
        f"{plan['row']} {plan['stage']} on {plan['devices']} x {plan['device']} ({mesh})",
        f"{'rows':12s}{plan['rows']} per device, {plan['batch_size']} per step in {plan['accumulate']} micro-batches, "
        f"of {plan['length']} positions and {plan['images']} image slots; remat {plan['remat']}, attention "
        f"{plan['attention']}, first moments {plan['moment_dtype']}"]
    if "argument" in memory:
        lines.append(f"{'memory':12s}arguments {_gib(memory['argument'])}, output {_gib(memory['output'])} (in place "
                     f"{_gib(memory['alias'])}), temporary {_gib(memory['temporary'])}, code {_gib(memory['code'])} "
                     "GiB per device")
    peak = f"{_gib(memory['peak'])} GiB" if memory["peak"] < 2**60 else "unknown"
    if memory["budget"] is None:
        lines.append(f"{'':12s}peak {peak}; of fake devices, which have no budget")
    else:
        lines.append(f"{'':12s}peak {peak} of {_gib(memory['budget'])} GiB ({_gib(memory['headroom'])} GiB headroom "
                     f"taken off): {'fits' if plan['fits'] else 'does not fit'}")
    if plan["largest"]:
        found = plan["largest"]
        lines.append(f"{'':12s}largest: {found['rows']} rows per device"
                     + (f", peak {_gib(found['peak'])} GiB" if found["rows"] else "")
                     + ("" if found["exact"] else " or a few more"))
    if flops["executed"]:
        ratio = f", {flops['ratio']:.3f} times the useful {flops['useful'] / 1e12:,.2f}" if flops["ratio"] else ""
        lines.append(f"{'operations':12s}executed {flops['executed'] / 1e12:,.2f} TFLOP per step{ratio}")
        if flops["kernels"]:
            lines.append(f"{'':12s}{flops['kernels'] / 1e12:,.2f} of it in attention kernels, by formula")
        lines.append(f"{'':12s}counted: dots, convolutions, cuBLAS and known attention kernels; not: elementwise work, "
                     "reductions" + "".join(f", {name}" for name in flops["not_counted"]))
        if flops["unknown_loops"]:
            lines.append(f"{'':12s}loops of unknown length, counted once: {', '.join(flops['unknown_loops'])}")
    for kind, found in plan["collectives"].items():
        lines.append(f"{'collective' if kind == next(iter(plan['collectives'])) else '':12s}{kind:20s}"
                     f"{found['number']:7,d} per step, {found['bytes'] / 1e9:8.2f} GB, sent {found['sent'] / 1e9:8.2f} "
                     "GB per device")
    if plan["involuntary_rematerializations"]:
        lines.append(f"{'':12s}{plan['involuntary_rematerializations']} involuntary full rematerializations: an array "
                     "is replicated to change how it is split")
    lines.append(f"{'program':12s}{program['instructions']:,d} instructions, {program['text'] / 1e6:.1f} MB of text; "
                 f"lowered in {program['lower_seconds']} s, compiled in {program['compile_seconds']} s")
    if plan["roofline"]:
        lines += _roofline(plan)
    lines += [f"{'try' if index == 0 else '':12s}{text}" for index, text in enumerate(plan["suggestions"])]
    lines.append(f"{'versions':12s}" + ", ".join(f"{name} {version}" for name, version in plan["versions"].items()))
    return "\n".join(lines)


def _roofline(plan: dict[str, Any]) -> list[str]:
    found, shares = plan["roofline"], plan["assumptions"]
    mfu = "" if found["mfu"] is None else f", MFU {found['mfu']:.1%}"
    return [
        f"{'roofline':12s}{found['seconds']:.2f} s per step, {found['samples_per_second']:.1f} samples/s "
        f"({plan['samples_per_row']:g} per row){mfu}",
        f"{'':12s}products {found['products']:.2f} s, memory {found['memory']:.2f} s, collectives "
        f"{found['collectives']:.2f} s of which {found['exposed']:.2f} s are not hidden",
        f"{'':12s}assumes {shares['compute']:.0%} of the peak in products, {shares['bandwidth']:.0%} of the memory's "
        f"and {shares['link']:.0%} of the links' bandwidth, {shares['overlap']:.0%} of collectives hidden; rows full, "
        "a sample each, with a loss everywhere"]


def _gib(number: float) -> str:
    return f"{number / GIB:.2f}"
