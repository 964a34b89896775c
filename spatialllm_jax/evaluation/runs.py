"""One run of a model on a benchmark: answered, or its stored answers scored again; what a reader must know of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import answering, benchmarks, predictions, tally
from spatialllm_jax.evaluation.benchmarks import Benchmark, Source
from spatialllm_jax.evaluation.items import Item, Skipped, rotations
from spatialllm_jax.whole_files import write_whole

FILES = {"scores": "predictions.jsonl", "blind": "predictions_blind.jsonl"}     # pass -> its answers


def run(benchmark: Benchmark, source: Source, model: answering.Answerer, file: Path, plan: answering.Plan, *,
        circular: bool = False, show_progress: bool = False) -> dict[str, Any]:
    """Answers what `file` lacks; the scores of all of it (`tally.tally`), and what was skipped or went unanswered.

    Args:
        circular: ask under every rotation of the options.
    """
    items: Iterable[Item | Skipped] = benchmarks.items_of(benchmark, source)
    if circular:
        items = (turned for entry in items for turned in (
            [entry] if isinstance(entry, Skipped) else rotations(entry)))
    outcome = answering.answer_all(items, model, file, plan, show_progress=show_progress)
    tree = tally.with_headline(tally.tally(outcome.lines), outcome.lines, benchmark.headline)
    for key, found in (("skipped", outcome.skipped), ("unanswered", outcome.failed)):
        tree[key] = {"n": len(found), "rows": [str(entry) for entry in found[:20]]}
    return tree


def rescored(folder: Path) -> dict[str, Any]:
    """`scores.json` of a folder, its answers read again by the rules of today, without model or pictures.

    Raises:
        UserError: the folder is none of launch.evaluate's.
    """
    known = _json(folder / "scores.json") or _json(folder / "run.json")
    if not known:
        raise UserError(f"{folder} has no run.json; give the folder of an evaluation")
    benchmark = benchmarks.get(known.get("benchmark", "spatial_vqa"))
    result = {**known, "benchmark": benchmark.name, "title": benchmark.title}
    for name, file in FILES.items():
        if (folder / file).exists():
            lines = predictions.rescored(predictions.read(folder / file))
            write_whole(folder / file, "".join(json.dumps(line) + "\n" for line in lines))
            before = known.get(name, {})
            result[name] = {**tally.with_headline(tally.tally(lines), lines, benchmark.headline),
                            **{key: before.get(key, {"n": 0, "rows": []}) for key in ("skipped", "unanswered")}}
    if "scores" not in result:
        raise UserError(f"{folder} has no {FILES['scores']}; run launch.evaluate without --rescore first")
    return result


def usage(lines: Sequence[Mapping[str, Any]], price: tuple[float, float] | None) -> dict[str, float] | None:
    """Tokens that an endpoint counted for the answers, and dollars at `price` per million in and out; None for none."""
    counted = [line["usage"] for line in lines if "usage" in line]
    if not counted:
        return None
    tokens = [sum(pair[k] for pair in counted) for k in (0, 1)]
    result: dict[str, float] = {"input_tokens": tokens[0], "output_tokens": tokens[1]}
    if price:
        result["dollars"] = round(sum(n * rate for n, rate in zip(tokens, price, strict=True)) / 1e6, 4)
    return result


def notes(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the table."""
    tree, lines = result["scores"], []
    for name, value in tree.get("headline", {}).items():
        lines.append(f"{name}: {'-' if value is None else f'{100 * value:.1f}%'}")
    for name, variant in tree.get("variants", {}).items():
        cell = variant["overall"]
        lines.append(f"{name.replace('_', ' + ')}: {100 * cell['acc']:.1f}% [{100 * cell['low']:.1f}, "
                     f"{100 * cell['high']:.1f}] of {cell['n']} questions in all their variants "
                     f"(chance {100 * cell['chance']:.1f}%)")
    for key in ("skipped", "unanswered"):
        if tree.get(key, {}).get("n"):
            lines.append(f"{tree[key]['n']} {key}, e.g. {tree[key]['rows'][0]}")
    if tree.get("unscored"):
        lines.append(f"{tree['unscored']} answers without a known right one: written, not scored")
    if usage := result.get("usage"):
        cost = f", {usage['dollars']} dollars" if "dollars" in usage else ""
        lines.append(f"{usage['input_tokens']} tokens in, {usage['output_tokens']} out{cost}")
    if judge := result.get("judge"):
        by_rule = judge.get("by_rule", {})
        kinds = ", ".join(f"{name} {count['read']} of {count['asked']}" for name, count in by_rule.items())
        faults = "".join(f", {judge[key]} {key}" for key in ("nonsense", "failed") if judge.get(key))
        lines.append(f"read by the judge {judge['judge']}: {judge['read']} of {judge['asked']} unread answers"
                     f"{f' ({kinds})' if len(by_rule) > 1 else ''}, {judge['right']} right{faults}; with them "
                     f"{100 * judge['overall']:.1f}% (the table counts rules alone)")
    return lines


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
