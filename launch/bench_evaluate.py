"""A whole benchmark beside transformers' one-by-one loop: from a file of questions to a file of answers.

The benchmark is a TSV of `--pictures` JPEGs with `--questions` on each, four options, and every rotation of them
(CircularEval). Ours is what `launch.evaluate` runs: rows read, pictures decoded, questions tokenised and answered in
batches, predictions written. The peer gets the same prompts as tokens, and the same JPEGs, and goes through them one by
one, as evaluation scripts over transformers do: `generate` for words, or a forward pass for each option's likelihood.
Both run one LLaVA from the same weights in float32, on the same cores, in turns. Answers are compared first: those of
another model are refused.

Programs compiled by ours are counted in its first turn, with the time at which the last of them was ready.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch import bench_peer, bench_report, cli
from launch import bench_train_data as data
from spatialllm_jax.errors import UserError

_FILE = "questions.tsv"
_OPTIONS = 4
# The vocabulary, so that words are a token each as they are in a real one: of the layout, and of the questions.
_FRAME = "Question: Options: A. B. C. D. Please select the correct answer from the options above."
_WORDS = """red green blue left right near far chair table lamp dog car person tree house bus cup book door window above
below behind front side facing camera viewer object region which closer taller wider of the and a is to from than in on
with by"""
_QUESTION, _OPTION = (6, 24), (1, 6)    # words, from and below
_COMPILED = "/jax/core/compile/backend_compile_duration"
Answers = dict[str, Any]                # by the question's id: text, or likelihoods of the options


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    result = cli.parser((__doc__ or "").splitlines()[0], prog="python -m launch.bench evaluate")
    data.add_flags(result)
    result.set_defaults(grid=24)        # LLaVA's 576 visual tokens: what a picture costs beside its questions matters
    result.add_argument("--pictures", type=int, default=4, help="of the benchmark")
    result.add_argument("--questions", type=int, default=3, help="on each picture, four rotations of each")
    result.add_argument("--new", type=int, default=4, help="tokens of a generated answer, at most")
    result.add_argument("--batch", type=int, default=16, help="questions or rows that ours takes at a time")
    result.add_argument("--repeats", type=int, default=3, help="turns; the figures are medians")
    return result


def bench(argv: Sequence[str]) -> dict[str, Any]:
    """Runs both sides in turns and prints their figures; see the module."""
    args = parser().parse_args(argv)
    cli.at_least_one(args, "pictures", "questions", "new", "batch", "repeats", "cores")
    from spatialllm_jax.data import tokenizer as tokenizers
    from spatialllm_jax.inference.prompts import ChatSettings

    tokenizer = tokenizers.train([_WORDS, _FRAME] * 4, 1024)
    if args.vocabulary <= tokenizer.vocab_size:
        raise UserError(f"--vocabulary {args.vocabulary} is too small; give more than {tokenizer.vocab_size}")
    size = data.size_of(args, rows=1, length=args.grid**2 + 512)
    with tempfile.TemporaryDirectory(prefix="bench-evaluate-") as name, bench_report.on_cores(args.cores, "--cores"):
        folder = Path(name)
        model, processor, parameters = bench_peer.written(size, folder, args)
        _write_questions(folder / _FILE, size, args)
        result: dict[str, Any] = {"parameters": parameters, "cores": args.cores, "repeats": args.repeats,
                                  "questions": args.pictures * args.questions * _OPTIONS}
        settings = ChatSettings("llama3", "", size.image_size, "pad")
        asked = _asked(folder, size, tokenizer, settings)
        for mode in ("generate", "score"):
            ours = _Counted(_ours(folder, size, tokenizer, settings, mode, args))
            peer = _peer(model, processor, tokenizer, settings, asked, mode, args)
            with ours.listening():
                result |= bench_peer.compared(mode, ours, peer, len(asked), args.repeats, _same)
            result |= {f"{mode}_programs": ours.first, f"{mode}_last_program_s": ours.last,
                       f"{mode}_programs_later": len(ours.compiled) - ours.first}
    bench_report.table(result)
    return bench_report.finish(result, "flax", "torch", "transformers")


def _write_questions(file: Path, size: data.Size, args: argparse.Namespace) -> None:
    from PIL import Image

    rng = np.random.default_rng(args.seed)

    def words(count: tuple[int, int]) -> str:
        return " ".join(rng.choice(_WORDS.split(), rng.integers(*count)))

    lines = ["\t".join(["index", "image", "question", "A", "B", "C", "D", "answer"])]
    for _ in range(args.pictures):
        buffer = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size.image_size, size.image_size)).save(buffer, "JPEG")
        picture = base64.b64encode(buffer.getvalue()).decode()
        for _ in range(args.questions):
            options = [words(_OPTION) for _ in range(_OPTIONS)]
            lines.append("\t".join([str(len(lines)), picture, f"{words(_QUESTION)}?", *options, "A"]))
    file.write_text("\n".join(lines) + "\n")


def _asked(folder: Path, size: data.Size, tokenizer: Any, settings: Any) -> dict[str, Any]:
    """By question: its picture, and the tokens of its prompt and of every option."""
    from spatialllm_jax.data import chat
    from spatialllm_jax.evaluation import benchmarks
    from spatialllm_jax.evaluation.items import Item, rotations

    def tokens(text: str, reply: str | None) -> np.ndarray:
        encoded = chat.encode(tokenizer, [(text, reply)], template=settings.template, system=settings.system,
                              num_image_tokens=size.image_tokens)
        return np.where(encoded.image_index >= 0, data.image_token(size), encoded.tokens)

    asked = {}
    for entry in benchmarks.items_of(benchmarks.get("tsv"), benchmarks.Source(folder / _FILE)):
        assert isinstance(entry, Item)
        for item in rotations(entry):
            prompt = tokens(item.text, None)
            options = [tokens(item.text, option)[len(prompt):] for option in item.candidates]
            asked[item.id] = (item.image, prompt, options)
    return asked


def _ours(folder: Path, size: data.Size, tokenizer: Any, settings: Any, mode: str, args: argparse.Namespace,
          ) -> bench_peer.Side:
    from convert.folders import open_weights
    from spatialllm_jax.evaluation import answering, benchmarks, predictions, runs
    from spatialllm_jax.inference.engine import build_engine

    engine = build_engine(open_weights(folder / "model"), settings, tokenizer, batch_size=args.batch)
    plan = answering.Plan(mode, max_new_tokens=args.new, row_length=max(512, 2 * size.image_tokens))

    def answer() -> Answers:
        engine.forget()
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "predictions.jsonl"
            runs.run(benchmarks.get("tsv"), benchmarks.Source(folder / _FILE), engine, file, plan, circular=True)
            return {line["id"]: line["scores"] or line["raw"] for line in predictions.read(file)}

    return answer


def _peer(model: Any, processor: Any, tokenizer: Any, settings: Any, asked: dict[str, Any], mode: str,
          args: argparse.Namespace) -> bench_peer.Side:
    import torch
    from PIL import Image

    from spatialllm_jax.data import chat

    stops = list(chat.stop_ids(tokenizer, settings.template))

    def words(shown: dict[str, Any], prompt: np.ndarray) -> str:
        ids = torch.from_numpy(prompt)[None]
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                             max_new_tokens=args.new, eos_token_id=stops, pad_token_id=0, **shown)
        text: str = tokenizer.decode([token for token in out[0, len(prompt):].tolist() if token not in stops])
        return text

    def likelihood(shown: dict[str, Any], prompt: np.ndarray, option: np.ndarray) -> float:
        ids = torch.from_numpy(np.r_[prompt, option])[None]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **shown).logits[0]
        logp = torch.log_softmax(logits[-len(option) - 1:-1], dim=-1)
        return float(logp[range(len(option)), option].sum())

    def answer() -> Answers:
        found = {}
        with torch.inference_mode():
            for name, (image, prompt, options) in asked.items():
                picture = Image.open(io.BytesIO(image)).convert("RGB")
                shown = {"pixel_values": processor(picture, return_tensors="pt")["pixel_values"]}
                found[name] = words(shown, prompt) if mode == "generate" else [
                    likelihood(shown, prompt, option) for option in options]
        return found

    return answer


class _Counted:
    """A side, and when programs were compiled; `first` of them in its first turn, the last after `last` seconds."""

    def __init__(self, side: bench_peer.Side):
        self._side, self.compiled = side, list[float]()
        self.first, self.last = -1, 0.0

    def __call__(self) -> Mapping[Any, Any]:
        began = time.perf_counter()
        found = self._side()
        if self.first < 0:
            self.first = len(self.compiled)
            self.last = round(self.compiled[-1] - began, 1) if self.compiled else 0.0
        return found

    def _heard(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            self.compiled.append(time.perf_counter())

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hears of every program that this process compiles."""
        import jax

        jax.monitoring.register_event_duration_secs_listener(self._heard)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(self._heard)


def _same(ours: Any, peer: Any) -> bool:
    """Whether texts are equal, or likelihoods to a part in a thousand."""
    return ours == peer if isinstance(ours, str) else bool(np.allclose(ours, peer, rtol=1e-3, atol=1e-3))
