"""How long a step would take at best, and what that makes of samples per second and MFU.

Kernels of one device run one after the other, each as fast as its matrix products or its memory traffic allow; a share
of the collectives' time hides behind them. Nothing is known here of launch gaps, stragglers, or the input pipeline: an
estimate is what a well-tuned run comes close to, not what it reaches.
"""

from __future__ import annotations

import dataclasses

from spatialllm_jax.planning.targets import Machine, Shares
from spatialllm_jax.planning.work import StepWork


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one step.

    Attributes:
        seconds: the step.
        products: seconds in kernels that matrix products bound.
        memory: seconds in kernels that memory traffic bounds.
        collectives: seconds of all collectives, hidden or not.
        exposed: seconds of collectives that nothing hides.
        samples_per_second: over all devices.
        mfu: useful operations per second over the peak; None without a useful count.
    """

    seconds: float
    products: float
    memory: float
    collectives: float
    exposed: float
    samples_per_second: float
    mfu: float | None


def estimate(step: StepWork, machine: Machine, devices: int, *, shares: Shares, samples: float,
             useful: float | None) -> Estimate | None:
    """The roofline of a step; None for machines without a peak.

    Args:
        shares: assumptions.
        samples: in a step.
        useful: operations that a step needs, over all devices.
    """
    if not machine.peak:
        return None
    products = memory = collectives = 0.0
    for work in step.work:
        if work.collective:
            beyond = machine.network and work.group > machine.per_host
            collectives += work.times * work.sent / ((machine.network if beyond else machine.link) * shares.link)
            continue
        rate = machine.peak * shares.compute * (machine.float32 if work.dtype == "f32" else 1.0)
        computing = work.flops / rate
        moving = work.bytes / (machine.bandwidth * shares.bandwidth)
        if computing >= moving:
            products += work.times * computing
        else:
            memory += work.times * moving
    hidden = min(collectives * shares.overlap, products + memory)
    seconds = products + memory + collectives - hidden
    return Estimate(seconds, products, memory, collectives, collectives - hidden, samples / seconds,
                    None if useful is None else useful / (seconds * devices * machine.peak))
