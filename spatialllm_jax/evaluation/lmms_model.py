"""A model class of lmms-eval over the engine: general benchmarks, in this process.

An installed lmms-eval finds it by itself (this package's entry point in `lmms_eval.models`):

    lmms-eval --model spatialllm_jax --model_args pretrained=RUN/tune/model --tasks pope,gqa --batch_size 16

Its tasks bring questions, pictures and scores; see docs/evaluation.md.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from spatialllm_jax.errors import UserError
from spatialllm_jax.inference.engine import load_engine
from spatialllm_jax.inference.prompts import PLACE, Prompt, picture_id
from spatialllm_jax.parallel.mesh import AXES, read_mesh

_CHUNK = 256    # requests whose pictures are held at a time
# Known to `generate_until`, and settings of tasks that change nothing here: one picture, read as in training.
_MEANT = {"until", "max_new_tokens", "temperature", "top_p", "do_sample", "num_beams"}
_IDLE = {"image_aspect_ratio", "use_cache"}


class LmmsModel(lmms):
    """Answers lmms-eval's requests.

    Args:
        pretrained: a model folder of training, or of `convert.from_hf`.
        batch_size: questions answered at a time.
        row_length: tokens of a row in which answers are scored.
        mesh: sizes of the mesh's axes, e.g. `fsdp=4,tensor=2`; one device when there are none.

    Raises:
        UserError: the folder holds no model, or an argument is not known.
    """

    is_simple = True

    def __init__(self, pretrained: str = "", batch_size: int | str | None = 16, row_length: int | str = 1024,
                 device: str | None = None, max_batch_size: int | None = None, **mesh: Any):
        super().__init__()
        if not pretrained:
            raise UserError("--model_args needs pretrained=FOLDER, a model folder")
        if unknown := set(mesh) - set(AXES):
            raise UserError(f"--model_args does not know {', '.join(sorted(unknown))}; it knows pretrained, row_length "
                            f"and the mesh's axes {', '.join(AXES)}")
        self.row_length = int(row_length)
        self.engine = load_engine(pretrained, batch_size=int(batch_size or 16), mesh=read_mesh(
            ",".join(f"{axis}={size}" for axis, size in mesh.items())) if mesh else None)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The model's words for every request, cut before its stop strings.

        Raises:
            UserError: a request asks for what is not offered (beams, video).
        """
        texts = [""] * len(requests)
        for (limit, temperature, top_p), indices in _alike(requests):
            for part in self._chunks(indices, "generate_until"):
                prompts = [self._prompt(requests[k].args[0], (), *requests[k].args[2:]) for k in part]
                answers = self.engine.generate(prompts, max_new_tokens=limit, temperature=temperature, top_p=top_p)
                for k, answer in zip(part, answers, strict=True):
                    texts[k] = _before(answer, requests[k].args[1].get("until"))
                    self.cache_hook.add_partial("generate_until", requests[k].args[:2], texts[k])
        return texts

    def loglikelihood(self, requests: Sequence[Instance]) -> list[Any]:
        """The loss of each continuation as the whole answer, its end mark included, in nats per token, and whether
        greedy generation would say it.

        A loss, not a likelihood: lmms-eval takes the least, as its LLaVA class returns losses from here too. And within
        a `GenerationResult`: of anything else that is no text, lmms-eval 0.7.3 makes a text.
        """
        results: list[Any] = [None] * len(requests)
        for part in self._chunks(range(len(requests)), "loglikelihood"):
            prompts = [self._prompt(requests[k].args[0], (_continuation(requests[k], self.task_dict),),
                                    *requests[k].args[2:]) for k in part]
            found = self.engine.likelihoods(prompts, row_length=self.row_length)
            for k, its in zip(part, found, strict=True):
                loss: Any = float(-its.logp[0] / its.tokens[0]), bool(its.greedy[0])
                results[k] = GenerationResult(loss)
        return results

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered: rounds bring pictures of their own."""
        raise UserError(f"task {requests[0].task_name} asks in several rounds, which this model does not answer")

    def _chunks(self, indices: Sequence[int], what: str) -> Iterator[list[int]]:
        with tqdm(total=len(indices), desc=what, unit="request", disable=self.rank != 0) as bar:
            rest = iter(indices)
            while part := list(itertools.islice(rest, _CHUNK)):
                yield part
                bar.update(len(part))

    def _prompt(self, context: str, options: tuple[str, ...], doc_to_visual: Any, doc_id: Any, task: str, split: str,
                ) -> Prompt:
        """One request as the engine takes it: one picture stands first, wherever the task wrote its place; several
        stand where it did, or in front with a blank between them, as lmms-eval's LLaVA class has them."""
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        visuals = [visual for visual in visuals or [] if visual is not None]
        where = f"task {task}, document {doc_id}"
        first, *others = [_encoded(visual, where) for visual in visuals] or [b""]
        if not others:
            return Prompt(picture_id(first), first, context.replace(PLACE, "").strip(), options)
        if PLACE not in context:
            context = f"{' '.join([PLACE] * len(visuals))}\n{context}"
        if context.count(PLACE) != len(visuals):
            raise UserError(f"{where}: {len(visuals)} pictures for {context.count(PLACE)} places ({PLACE}) in its text")
        return Prompt(picture_id(first), first, context, options, more=tuple(
            (picture_id(other), other) for other in others))


def manifest() -> Any:
    """What the entry point gives lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("spatialllm_jax", simple_class_path=f"{__name__}.{LmmsModel.__name__}")


def _alike(requests: Sequence[Instance]) -> list[tuple[tuple[int, float, float], list[int]]]:
    """Requests by (most tokens, temperature, top-p), which one call of the engine has in common."""
    groups: dict[tuple[int, float, float], list[int]] = {}
    for k, request in enumerate(requests):
        groups.setdefault(_settings(request.args[1], request.task_name), []).append(k)
    return list(groups.items())


def _settings(said: Mapping[str, Any], task: str) -> tuple[int, float, float]:
    if int(said.get("num_beams") or 1) != 1:
        raise UserError(f"task {task} asks for num_beams={said['num_beams']}; only 1 is offered "
                        "(--gen_kwargs num_beams=1)")
    if ignored := set(said) - _MEANT - _IDLE:
        logging.log_first_n(logging.WARNING, "task %s sets %s, which is not used here", 20, task, ", ".join(ignored))
    temperature = float(said.get("temperature") or 0.0) if said.get("do_sample", True) else 0.0
    # Top-p of tasks that do not sample is of no account, and 0 is some tasks' word for none.
    top_p = float(said.get("top_p") or 1.0) if temperature > 0 else 1.0
    return int(said.get("max_new_tokens") or 1024), temperature, top_p


def _before(text: str, until: str | Sequence[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or []:
        text = text.partition(stop)[0] if stop else text
    return text


def _continuation(request: Instance, documents: Mapping[str, Any]) -> str:
    """The text to be scored: given as such, or made from the document."""
    target, _, doc_id, task, split = request.args[1:]
    return (target if isinstance(target, str) else str(target(documents[task][split][doc_id]))).strip()


def _encoded(visual: Any, where: str) -> bytes:
    """A task's picture as PNG."""
    if isinstance(visual, str):
        try:
            return Path(visual).read_bytes()
        except OSError as error:
            raise UserError(f"{where}: {visual} cannot be read: {error.strerror}") from None
    if not isinstance(visual, Image.Image):
        raise UserError(f"{where}: a {type(visual).__name__} is no picture; this model reads pictures only")
    buffer = io.BytesIO()
    visual.convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
