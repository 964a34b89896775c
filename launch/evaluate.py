"""Scores a model on a benchmark: `python -m launch.evaluate --model RUN/tune/model --data data/spatial_vqa`.

`--benchmark` names another one than SpatialVQA, read from the files its authors publish (docs/evaluation.md). Answers
are written to `predictions.jsonl` as they come; after a kill the same command goes on. `scores.json` holds accuracies
with n, 95 % intervals and chance. `--blind` adds the same model on blanked pictures, `--rescore` reads stored answers
again without any model, `--endpoint` asks a model behind HTTP instead of `--model`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import cli
from spatialllm_jax.errors import UserError
from spatialllm_jax.whole_files import write_whole

PROFILED = 8


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, evaluates, returns the scores."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder, e.g. runs/align_in166k-tiny/tune/model")
    parser.add_argument("--benchmark", default="spatial_vqa", help="name of the benchmark; see docs/evaluation.md")
    parser.add_argument("--data", help="dataset folder written by launch.generate, or the benchmark's file or folder")
    parser.add_argument("--images", help="folder of the benchmark's pictures, where it is another one")
    parser.add_argument("--split", default="test", help="split of a dataset folder")
    parser.add_argument("--out", help="folder for predictions and scores (default: MODEL/../evaluation[/BENCHMARK])")
    parser.add_argument("--answer", choices=("score", "generate"), help="choose the likeliest option, or read the "
                        "model's own words (default: score for spatial_vqa, else as the benchmark publishes)")
    parser.add_argument("--blind", action="store_true", help="also evaluate with every picture blanked")
    parser.add_argument("--circular", action="store_true", help="also ask under every rotation of the options")
    parser.add_argument("--rescore", action="store_true", help="read the answers in --out again; no model, no pictures")
    parser.add_argument("--limit", type=int, default=0, help="only the first N questions (spatial_vqa: images); 0: all")
    parser.add_argument("--max-skipped", type=int, default=10, help="so many rows may be unfit or unanswered")
    parser.add_argument("--batch-size", type=int, default=16, help="questions or rows at a time")
    cli.mesh_flag(parser)
    parser.add_argument("--row-length", type=int, default=512, help="tokens per row while scoring options")
    parser.add_argument("--max-new-tokens", type=int, help="longest generated answer (default: the "
                        "benchmark's, and at least 128 for endpoints)")
    parser.add_argument("--features", help="folder of stored features: pictures are encoded once, over all runs")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    cli.machine_flags(parser, f"{PROFILED} pictures, compiled before (default: profile in --out)")
    _endpoint_flags(parser)
    args = parser.parse_args(argv)
    cli.prepare(args)

    from spatialllm_jax.evaluation import answering, benchmarks, predictions, runs

    benchmark = benchmarks.get(args.benchmark)
    if args.rescore:
        if not args.out:
            raise UserError("--rescore needs --out, the folder of the answers")
        if args.judge:
            _judge(args)
        return _finish(args, Path(args.out), runs.rescored(Path(args.out)))
    if not args.data:
        raise UserError(f"--data is missing: the files of {benchmark.title}")
    if bool(args.model) == bool(args.endpoint):
        raise UserError("give one of --model FOLDER and --endpoint URL")
    if args.profile is not None and args.endpoint:
        raise UserError("--profile traces this machine; leave it out with --endpoint")
    if args.endpoint_timeout <= 0:
        raise UserError(f"--endpoint-timeout {args.endpoint_timeout:g} must be positive, in seconds")
    if args.max_skipped < 0:
        raise UserError(f"--max-skipped {args.max_skipped} must not be negative")
    mode = args.answer or ("generate" if args.endpoint else benchmark.answer)
    source = benchmarks.Source(Path(args.data), Path(args.images) if args.images else None, args.split, args.limit)
    _check(benchmark, source, mode, args)

    settings: dict[str, Any] = {"benchmark": benchmark.name, "data": args.data, "split": args.split, "answer": mode,
                                "circular": args.circular}
    if mode == "generate":
        # Chat models behind HTTP say more before they come to the answer.
        settings["max_new_tokens"] = args.max_new_tokens or max(benchmark.max_new_tokens, 128 if args.endpoint else 0)
    if args.endpoint:
        model: Any = _endpoint(args)
        settings |= {"model": args.endpoint_model, "endpoint": args.endpoint, "format": args.endpoint_format}
        if args.endpoint_set:
            settings["parameters"] = dict(model.config.parameters)
        out, chunk = args.out, max(1, args.endpoint_workers) * 4
        if not out:
            raise UserError("--endpoint needs --out, the folder for its answers")
    else:
        model = _engine(args, benchmark.name)
        settings |= {"model": args.model, "weights": _stamp(Path(args.model))}
        out = args.out or Path(args.model).parent / "evaluation" / (
            "" if benchmark.name == "spatial_vqa" else benchmark.name)
        chunk = max(256, 4 * args.batch_size)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    # The same file under another spelling of its path is the same file.
    if moved := predictions.set_aside(folder, {**settings, "data": str(source.path.resolve())}):
        print(f"answers of another model or with other settings were moved to {moved}")
    result: dict[str, Any] = {key: settings[key] for key in ("model", "data", "answer")}
    result |= {"benchmark": benchmark.name, "title": benchmark.title}
    for name in runs.FILES if args.blind else ("scores",):
        plan = answering.Plan(mode, name == "blind", chunk, args.max_skipped, settings.get("max_new_tokens", 32),
                              args.row_length)
        if args.profile is not None and name == "scores":
            few = dataclasses.replace(source, limit=PROFILED)
            _profile(args.profile or folder / "profile", functools.partial(
                runs.run, benchmark, few, model, plan=plan))
        result[name] = runs.run(benchmark, source, model, folder / runs.FILES[name], plan, circular=args.circular,
                                show_progress=not args.quiet)
    return _finish(args, folder, result)


def _profile(folder: str | Path, answer: Callable[[Path], Any]) -> None:
    """Answers a few questions twice, the second time under a trace."""
    from spatialllm_jax.training.profiling import trace

    with tempfile.TemporaryDirectory() as scratch:
        answer(Path(scratch) / "compiled.jsonl")
        with trace(folder):
            answer(Path(scratch) / "traced.jsonl")
    print(f"trace of the first {PROFILED} pictures: {folder}")


def _endpoint_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a model behind HTTP; its key is read from the environment")
    group.add_argument("--endpoint", metavar="URL", help="e.g. https://api.openai.com/v1")
    group.add_argument("--endpoint-model", default="", metavar="NAME", help="the model's name there")
    group.add_argument("--endpoint-format", default="openai", help="openai or anthropic")
    group.add_argument("--endpoint-key", default="", metavar="VARIABLE",
                       help="environment variable that holds the key (default: OPENAI_API_KEY or ANTHROPIC_API_KEY)")
    group.add_argument("--endpoint-timeout", type=float, default=120.0, help="seconds per attempt")
    group.add_argument("--endpoint-attempts", type=int, default=6, help="attempts per question")
    group.add_argument("--endpoint-workers", type=int, default=4, help="requests under way at once")
    group.add_argument("--endpoint-rate", type=float, default=0.0, help="most requests a minute; 0: no limit")
    group.add_argument("--endpoint-set", action="append", default=[], metavar="NAME=JSON",
                       help="a parameter of every request; null leaves it out, e.g. temperature=null")
    group.add_argument("--endpoint-price", default="", metavar="IN,OUT", help="dollars per million tokens, for costs")
    group.add_argument("--judge", metavar="URL", help="have a language model read what no rule could; counted apart")
    group.add_argument("--judge-model", default="", metavar="NAME", help="the judge's name there")
    group.add_argument("--judge-key", default="", metavar="VARIABLE", help="environment variable that holds its key")


def _endpoint(args: argparse.Namespace) -> Any:
    from spatialllm_jax.evaluation.endpoints import Endpoint, EndpointConfig

    if not args.endpoint_model:
        raise UserError("--endpoint needs --endpoint-model, the model's name there")
    return Endpoint(EndpointConfig(
        args.endpoint, args.endpoint_model, args.endpoint_format, args.endpoint_key, args.endpoint_timeout,
        args.endpoint_attempts, args.endpoint_rate, args.endpoint_workers, parameters=_parameters(args.endpoint_set)))


def _parameters(texts: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    def one(text: str) -> tuple[str, Any]:
        name, equals, value = text.partition("=")
        try:
            if not (name and equals):
                raise ValueError
            return name, json.loads(value)
        except ValueError:
            raise UserError(f"--endpoint-set {text} is not NAME=JSON, such as max_completion_tokens=256 or "
                            "temperature=null") from None

    return tuple(one(text) for text in texts)


def _check(benchmark: Any, source: Any, mode: str, args: argparse.Namespace) -> None:
    """Finds the mistakes that can be found before a model is loaded."""
    from spatialllm_jax.evaluation import benchmarks, rules
    from spatialllm_jax.evaluation.items import Item

    if args.endpoint and mode == "score":
        raise UserError("--answer score needs likelihoods, which endpoints do not give; use --answer generate")
    _price(args.endpoint_price)
    if args.judge:
        _judge(args)
    for seen, entry in enumerate(benchmarks.items_of(benchmark, source), 1):
        if isinstance(entry, Item):
            if mode == "score" and entry.rule not in rules.CHOICES:
                raise UserError(f"--answer score: {benchmark.title} has free answers; use --answer generate")
            return
        if seen > args.max_skipped:
            raise UserError(f"{entry}; none of the first {seen} rows can be asked, more than --max-skipped "
                            f"{args.max_skipped}; check that {source.path} is {benchmark.title}")
    raise UserError(f"{source.path} holds no question of {benchmark.title}; check --data and --benchmark")


def _engine(args: argparse.Namespace, benchmark: str) -> Any:
    from convert.engines import load_engine

    engine = load_engine(args.model, batch_size=args.batch_size, mesh=cli.mesh(args))
    if args.features:
        from spatialllm_jax.training.features import stored_features
        from spatialllm_jax.training.partition import flatten

        if benchmark != "spatial_vqa":
            raise UserError(f"--features is for dataset folders; leave it out with --benchmark {benchmark}")
        engine.features = stored_features(
            engine.model.config, flatten(engine.params), [(args.data, args.split)],
            image_size=engine.settings.image_size, resize=engine.settings.resize, folder=args.features,
            show_progress=not args.quiet)[args.data, args.split]
    return engine


def _stamp(folder: Path) -> str:
    """Tells a model folder from one that was written later: names, sizes and times of its files."""
    import hashlib

    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
    text = "".join(f"{file.relative_to(folder)} {file.stat().st_size} {file.stat().st_mtime_ns}\n" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _finish(args: argparse.Namespace, folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Adds cost and the judge, writes `scores.json`, prints the table."""
    from spatialllm_jax.evaluation import judge, predictions, runs

    lines = predictions.read(folder / runs.FILES["scores"])
    if usage := runs.usage(lines, _price(args.endpoint_price)):
        result["usage"] = usage
    if args.judge:
        result["judge"] = judge.judged(lines, _judge(args), args.judge_model, folder / "judge.jsonl")
    write_whole(folder / "scores.json", json.dumps(result, indent=1))
    print(table({name: result[name] for name in runs.FILES if name in result}))
    for text in runs.notes(result):
        print(text)
    return result


def _judge(args: argparse.Namespace) -> Any:
    from spatialllm_jax.evaluation.endpoints import Endpoint, EndpointConfig

    if not args.judge_model:
        raise UserError("--judge needs --judge-model, the model's name there")
    return Endpoint(EndpointConfig(args.judge, args.judge_model, "openai", args.judge_key, args.endpoint_timeout,
                                   args.endpoint_attempts, args.endpoint_rate, args.endpoint_workers))


@functools.cache
def _price(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        dollars_in, dollars_out = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--endpoint-price {text} is not IN,OUT, dollars per million tokens such as 2.5,10") from None
    return dollars_in, dollars_out


def table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """A text table of score trees, one column each; rows are overall and the types."""
    if not columns:
        raise UserError("there are no scores to show")
    first = next(iter(columns.values()))
    width = max(18, *(len(name) + 2 for name in first["by_type"])) if first["by_type"] else 18
    lines = [f"{'':{width}s}{'n':>6s}{'chance':>8s}" + "".join(f"{name:>30s}" for name in columns)]
    for row in ("overall", *first["by_type"]):
        cells = [scores["overall"] if row == "overall" else scores["by_type"][row] for scores in columns.values()]
        line = f"{row:{width}s}{cells[0]['n']:6d}{100 * cells[0]['chance']:7.1f}%"
        for cell in cells:
            interval = f"[{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
            unread = f" {cell['parse_failures']} unread" if cell["parse_failures"] else ""
            text = f"{100 * cell['acc']:.1f}% {interval}{unread}"
            line += f"{text:>30s}"
        lines.append(line)
    macros = "".join(f"{100 * scores['macro']:29.1f}%" for scores in columns.values())
    lines.append(f"{'macro over types':{width + 14}s}{macros}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
