"""Scores from lines of predictions alone: micro and macro averages, per type and group, intervals, answer bias.

The same lines give the same tree, whatever order they were written in and however often the run was interrupted.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from spatialllm_jax.evaluation import rules
from spatialllm_jax.evaluation.statistics import Accuracy, accuracy, macro, wilson_clustered
from spatialllm_jax.questions.types import SPATIAL_TYPES
from spatialllm_jax.questions.wording import LETTERS

Line = Mapping[str, Any]
Lines = Sequence[Line]
# Groups of variants that count as right only when all of them are; see `items.Item`.
VARIANTS = {"circular": "circle", "flip": "flip", "flip_circular": "whole"}


def tally(lines: Iterable[Line]) -> dict[str, Any]:
    """The scores of one run on one benchmark.

    Args:
        lines: of predictions.jsonl; those without a known answer count in "unscored" alone.

    Returns:
        "overall", "by_type", "by_group": cells (`Accuracy`, with a second interval clustered by picture);
        "macro": mean over types; "bias": how often each option was chosen and was right; "variants": CircularEval,
        FlipEval and both, where questions come in variants; "unscored".
    """
    kept = sorted(lines, key=lambda line: line["id"])
    scored = [line for line in kept if line["right"] is not None]
    tree = _breakdown(scored)
    tree["unscored"] = len(kept) - len(scored)
    tree["bias"] = bias(scored)
    tree["variants"] = {}
    for name, key in VARIANTS.items():
        groups = _groups(scored, key)
        if any(len(members) > 1 for members in groups):
            tree["variants"][name] = _breakdown([_all_right(members) for members in groups])
    return tree


def _breakdown(lines: Lines) -> dict[str, Any]:
    types = {name: found for name, found in _split(lines, "type").items()}
    cells = {name: _cell(types[name]) for name in sorted(types, key=_place)}
    return {"overall": _dict(lines), "macro": macro(cells),
            "by_type": {name: _dict(types[name]) for name in cells},
            "by_group": {name: _dict(found) for name, found in sorted(_split(lines, "group").items())}}


def _place(name: str) -> tuple[int, str]:
    """SpatialVQA's types in the paper's order, others by name."""
    order = list(SPATIAL_TYPES)
    return (order.index(name), "") if name in SPATIAL_TYPES else (len(order), name)


def _split(lines: Lines, key: str) -> dict[str, list[Line]]:
    result: dict[str, list[Line]] = collections.defaultdict(list)
    for line in lines:
        result[line[key]].append(line)
    return result


def _cell(lines: Lines) -> Accuracy:
    return accuracy([line["right"] for line in lines], [rules.chance(line) for line in lines],
                    sum(not rules.was_read(line) for line in lines))


def _dict(lines: Lines) -> dict[str, float | int]:
    clusters = clusters_of(lines)
    low, high = wilson_clustered([line["right"] for line in lines], clusters)
    return {**_cell(lines).as_dict(), "clusters": len(set(clusters)), "low_clustered": low, "high_clustered": high}


def clusters_of(lines: Lines) -> list[str]:
    """A name per line, equal where answers are not independent: about one picture, or with one in common, or in one
    "cluster" (a question and its mirror image), or tied together by such lines in between."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for line in lines:
        tied = [f"cluster {line['cluster']}"] if line.get("cluster") else []
        for name in (*tied, *(f"picture {image}" for image in line.get("images", ()))):
            first, second = sorted((root(f"picture {line['image']}"), root(name)))
            parent[second] = first
    return [root(f"picture {line['image']}") for line in lines]


def _groups(lines: Lines, key: str) -> list[list[Line]]:
    if not any(line.get(key) for line in lines):
        return []
    groups: dict[str, list[Line]] = collections.defaultdict(list)
    for line in lines:
        groups[line.get(key) or line["id"]].append(line)
    return list(groups.values())


def _all_right(members: Lines) -> dict[str, Any]:
    """One line for a question in all its variants; guessing has to be right every time."""
    chance = 1.0
    for line in members:
        chance *= rules.chance(line)
    read = all(rules.was_read(line) for line in members)
    return {**members[0], "right": all(line["right"] for line in members), "chance": chance,
            "choice": 0 if read else None, "parsed": 0 if read else None}


def bias(lines: Lines) -> dict[str, Any]:
    """Which options were chosen, and which were right: by place (A, B, ...), or yes and no.

    Returns:
        "options" {name: [times chosen, times right]}, "n", and "distance": half the summed difference of the two
        distributions over the answers that were read; 0 for none, 1 for an option that is never right.
    """
    chosen: collections.Counter[str] = collections.Counter()
    right: collections.Counter[str] = collections.Counter()
    for line in lines:
        if line["rule"] in rules.CHOICES and line.get("choice") is not None:
            names = LETTERS if line["rule"] == "choice" else line["options"]
            chosen[names[line["choice"]]] += 1
            right[names[line["answer"]]] += 1
    n = sum(chosen.values())
    names = sorted(set(chosen) | set(right))
    return {"options": {name: [chosen[name], right[name]] for name in names}, "n": n,
            "distance": sum(abs(chosen[name] - right[name]) for name in names) / (2 * n) if n else 0.0}


def with_headline(tree: dict[str, Any], lines: Iterable[Line],
                  headline: Callable[[Lines], Mapping[str, float | None]]) -> dict[str, Any]:
    """The tree with the benchmark's own figures."""
    kept = sorted((line for line in lines if line["right"] is not None), key=lambda line: line["id"])
    return {**tree, "headline": dict(headline(kept))}
