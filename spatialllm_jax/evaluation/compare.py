"""Two runs on the same questions, question by question: who is right where, and whether that can be chance."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation.statistics import mcnemar, paired_bootstrap
from spatialllm_jax.evaluation.tally import clusters_of

Lines = Sequence[Mapping[str, Any]]


def compare(a: Lines, b: Lines, *, seed: int = 0) -> dict[str, Any]:
    """B against A on the scored questions that both answered.

    Returns:
        "n"; "left_out" (questions that only one of them answered); "overall" and "by_type" {name: cell}, a cell being
        "n", "a" and "b" (accuracies), "only_a", "only_b" (right alone), "difference" (b - a), "low", "high" (95 %,
        paired bootstrap over pictures), "p" (McNemar, exact, two-sided).

    Raises:
        UserError: they share no question, or an id stands for different questions.
    """
    first, second = ({line["id"]: line for line in lines if line["right"] is not None} for lines in (a, b))
    both = sorted(set(first) & set(second))
    if not both:
        raise UserError("the two runs have no scored question in common; compare runs on one benchmark")
    for identity in both:
        if any(first[identity][key] != second[identity][key] for key in ("answer", "options", "rule")):
            raise UserError(f"question {identity!r} is not the same in both runs; compare runs on one benchmark's file")
    by_type: dict[str, list[str]] = collections.defaultdict(list)
    for identity in both:
        by_type[first[identity]["type"]].append(identity)

    def cell(ids: Sequence[str]) -> dict[str, float | int]:
        pairs = [(bool(first[i]["right"]), bool(second[i]["right"])) for i in ids]
        only_a, only_b = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
        low, high = paired_bootstrap([float(y) - float(x) for x, y in pairs],
                                     clusters_of([first[i] for i in ids]), seed=seed)
        right_a, right_b = sum(x for x, _ in pairs), sum(y for _, y in pairs)
        return {"n": len(ids), "a": right_a / len(ids), "b": right_b / len(ids), "only_a": only_a, "only_b": only_b,
                "difference": (right_b - right_a) / len(ids), "low": low, "high": high, "p": mcnemar(only_a, only_b)}

    return {"n": len(both), "left_out": len(set(first) ^ set(second)), "overall": cell(both),
            "by_type": {name: cell(ids) for name, ids in sorted(by_type.items())}}


def text_table(found: Mapping[str, Any], a: str, b: str) -> str:
    """The comparison in plain text."""
    rows = {"overall": found["overall"], **found["by_type"]}
    width = max(18, *(len(name) + 2 for name in rows))
    lines = [f"A: {a}", f"B: {b}", f"{'':{width}s}{'n':>6s}{'A':>8s}{'B':>8s}{'B - A':>8s}{'95 % interval':>17s}"
             f"{'only A':>8s}{'only B':>8s}{'p':>9s}"]
    for name, cell in rows.items():
        interval = f"[{100 * cell['low']:+.1f}, {100 * cell['high']:+.1f}]"
        lines.append(f"{name:{width}s}{cell['n']:6d}{100 * cell['a']:7.1f}%{100 * cell['b']:7.1f}%"
                     f"{100 * cell['difference']:+8.1f}{interval:>17s}{cell['only_a']:8d}{cell['only_b']:8d}"
                     f"{cell['p']:9.2g}")
    if found["left_out"]:
        lines.append(f"{found['left_out']} questions that only one of them answered are left out")
    return "\n".join(lines)
