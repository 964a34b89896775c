"""Chat templates and supervision masks: conversations -> token ids with one span per turn.

Spans are built while tokenising, turn by turn, never found afterwards by re-tokenising prefixes: that is
how LLaVA comes to mask whole samples. A conversation starts with a *trunk* (system text, image) and goes on
with turns. Turns are either a dialogue, each seeing the ones before, or independent questions that share
the trunk and do not see each other (`branches`): exactly the loss of separate rows, for one image's tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from spatialllm_jax.data.tokenizer import Tokenizer
from spatialllm_jax.errors import UserError

VICUNA_SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives "
                 "helpful, detailed, and polite answers to the user's questions.")


@dataclasses.dataclass(frozen=True)
class Template:
    """How a conversation is written down.

    Attributes:
        trunk: system text -> everything before the first image or question.
        ask: (question, is the first turn, has an image) -> text from the question to where the answer starts.
        reply: answer -> the supervised text, its end mark included.
        stop: token that ends an answer.
        system: the system text used when none is given.
    """

    name: str
    trunk: Callable[[str], str]
    ask: Callable[[str, bool, bool], str]
    reply: Callable[[str], str]
    stop: str
    system: str


def _llama3_trunk(system: str) -> str:
    head = "<|begin_of_text|>"
    if system:
        head += f"<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
    return head


def _llama3_ask(question: str, first: bool, image: bool) -> str:
    # The first user header stands before the image (see `_HEADERS`); later turns write their own.
    opening = ("\n" if image else "") if first else "<|start_header_id|>user<|end_header_id|>\n\n"
    return f"{opening}{question}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


def _chatml_ask(question: str, first: bool, image: bool) -> str:
    opening = ("\n" if image else "") if first else "\n<|im_start|>user\n"
    return f"{opening}{question}<|im_end|>\n<|im_start|>assistant\n"


def _vicuna_ask(question: str, first: bool, image: bool) -> str:
    opening = ("\n" if image else "") if first else "USER: "
    return f"{opening}{question} ASSISTANT:"


# What opens the first user turn, before the image.
_HEADERS = {"llama3": "<|start_header_id|>user<|end_header_id|>\n\n", "chatml": "<|im_start|>user\n",
            "vicuna_v1": "USER: ", "compact": ""}

TEMPLATES: dict[str, Template] = {
    # Llama 3's own headers with Vicuna's system sentence; no official LLaVA variant exists.
    "llama3": Template("llama3", _llama3_trunk, _llama3_ask, lambda a: f"{a}<|eot_id|>", "<|eot_id|>",
                       VICUNA_SYSTEM),
    # SmolLM2 and other ChatML models.
    "chatml": Template("chatml", lambda s: f"<|im_start|>system\n{s}<|im_end|>\n" if s else "", _chatml_ask,
                       lambda a: f"{a}<|im_end|>", "<|im_end|>", VICUNA_SYSTEM),
    # No roles, one mark per turn: for small models trained here from scratch, where headers would be a third
    # of all tokens. The answer follows the question's last word directly: when that word names the object
    # asked about, one attention step less lies between the object and the answer.
    "compact": Template("compact", lambda s: f"<|begin_of_text|>{s}", lambda q, first, image: q.rstrip(" .?!"),
                        lambda a: f"{a}<|eot_id|>", "<|eot_id|>", ""),
    # LLaVA-v1.5's conversation template.
    "vicuna_v1": Template("vicuna_v1", lambda s: f"<s>{s} " if s else "<s>", _vicuna_ask,
                          lambda a: f" {a}</s>", "</s>", VICUNA_SYSTEM),
}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One tokenised sample, before packing. All arrays [T] except `answers`.

    Attributes:
        tokens: ids, 0 where an image patch goes.
        supervised: whether the token itself is to be predicted.
        branch_ids, positions: see `data.batch.Batch`.
        image_index: patch within this sample's own images, one after the other, -1 for text.
        answers: (start, end) of every supervised span.
    """

    tokens: np.ndarray
    supervised: np.ndarray
    branch_ids: np.ndarray
    positions: np.ndarray
    image_index: np.ndarray
    answers: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """T."""
        return len(self.tokens)

    def part(self, where: slice | np.ndarray) -> Encoded:
        """Its tokens there (or these, by their places), without `answers`."""
        return Encoded(self.tokens[where], self.supervised[where], self.branch_ids[where], self.positions[where],
                       self.image_index[where], ())

    def joined(self, other: Encoded) -> Encoded:
        """This, and `other` of the same sample behind it, without `answers`."""
        def both(name: str) -> np.ndarray:
            return np.concatenate([getattr(self, name), getattr(other, name)])

        return Encoded(both("tokens"), both("supervised"), both("branch_ids"), both("positions"), both("image_index"),
                       ())


def template_for(name: str) -> Template:
    """The template called `name`. Raises UserError that lists the names."""
    if name not in TEMPLATES:
        raise UserError(f"unknown chat template {name!r}; choose one of {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]


def opening(name: str) -> str:
    """What stands between the trunk and the first image or question under the template called `name`."""
    return _HEADERS[template_for(name).name]


def stop_ids(tokenizer: Tokenizer, template: str) -> tuple[int, ...]:
    """Token ids that end an answer under `template`."""
    names = [template_for(template).stop, "<|end_of_text|>", "</s>", "<|endoftext|>"]
    return tuple(dict.fromkeys(tokenizer.id(name) for name in names if tokenizer.has(name)))


def _turns_that_fit(turns: int, lengths: Sequence[int], trunk: int, budget: int | None) -> int:
    """How many leading turns fit into `budget` tokens together with the trunk."""
    if budget is None:
        return turns
    total, kept = trunk, 0
    for length in lengths:
        if total + length > budget:
            break
        total, kept = total + length, kept + 1
    return kept


def encode(tokenizer: Tokenizer, turns: Sequence[tuple[str, str | None]], *, template: str,
           num_image_tokens: int = 0, pictures: Sequence[tuple[str, int]] = (), system: str | None = None,
           branches: bool = False, max_length: int | None = None) -> Encoded:
    """Tokenises a conversation.

    Args:
        turns: (question, answer) pairs; an answer of None leaves the prompt open for generation.
        template: a key of `TEMPLATES`. Captions without a question use `encode_plain`.
        num_image_tokens: positions reserved for the image at the front of the first user message; 0 for none.
        pictures: instead of it, pictures within that message: (text before one, positions reserved for it); the first
            question is what follows the last. They are part of the trunk.
        system: replaces the template's system text; "" leaves it out.
        branches: turns are independent questions on the shared trunk rather than a dialogue.
        max_length: turns that do not fit whole are left out, from the last.

    Returns:
        The sample; `len(answers)` tells how many turns were kept. Zero when not even the first fits.
    """
    form = template_for(template)
    head = form.trunk(form.system if system is None else system) + _HEADERS[template]
    (text, count), *others = pictures or [("", num_image_tokens)]
    trunk = [(tokenizer.encode(piece) if piece else (), positions)
             for piece, positions in [(head + text, count), *others]]
    pieces = []
    for index, (question, answer) in enumerate(turns):
        first = branches or index == 0
        ask = tokenizer.encode(form.ask(question, first, num_image_tokens > 0 and not pictures))
        reply = () if answer is None else _reply(tokenizer, form, answer)
        pieces.append((ask, reply))
    return _assemble(trunk, pieces, branches, max_length)


def encode_plain(tokenizer: Tokenizer, caption: str | None, *, num_image_tokens: int, begin: str | None,
                 max_length: int | None = None) -> Encoded:
    """LLaVA's `plain` template for stage 1: the image, then the caption and a line break, supervised.

    For captions only: `plain` has no place for a question, so probing pairs must not go through it.

    Args:
        caption: None leaves it open for generation.
        begin: token that begins every text ("<|begin_of_text|>", "<s>"), or None.
    """
    trunk = (tokenizer.id(begin),) if begin else ()
    reply = () if caption is None else tokenizer.encode(f"{caption}\n")
    return _assemble([(trunk, num_image_tokens)], [((), reply)], False, max_length)


def begin_token(tokenizer: Tokenizer) -> str | None:
    """The token that begins a text in this vocabulary (Llama 3's, Llama 2's, CLIP's), or None."""
    return next((name for name in ("<|begin_of_text|>", "<s>", "<|startoftext|>") if tokenizer.has(name)), None)


def _reply(tokenizer: Tokenizer, form: Template, answer: str) -> tuple[int, ...]:
    # Sentencepiece-like vocabularies add the leading space themselves; the end mark is looked up by id so
    # that it can never be split into characters.
    text = form.reply(answer).removesuffix(form.stop)
    return (*tokenizer.encode(text.strip() if tokenizer.has("▁") else text), tokenizer.id(form.stop))


def _assemble(trunk: Sequence[tuple[Sequence[int], int]], pieces: Sequence[tuple[Sequence[int], Sequence[int]]],
              branches: bool, max_length: int | None) -> Encoded:
    """The trunk is pairs of tokens and the number of visual tokens behind them."""
    base = sum(len(piece) + count for piece, count in trunk)
    lengths = [len(ask) + len(reply) for ask, reply in pieces]
    kept = _turns_that_fit(len(pieces), lengths, base, max_length)
    total = base + sum(lengths[:kept])
    tokens = np.zeros(total, np.int32)
    supervised = np.zeros(total, bool)
    branch_ids = np.zeros(total, np.int32)
    positions = np.arange(total, dtype=np.int32)
    image_index = np.full(total, -1, np.int32)
    start = seen = 0
    for piece, count in trunk:
        middle, end = start + len(piece), start + len(piece) + count
        tokens[start:middle], image_index[middle:end] = piece, np.arange(seen, seen + count)
        start, seen = end, seen + count
    answers = []
    for index, (ask, reply) in enumerate(pieces[:kept]):
        middle, end = start + len(ask), start + len(ask) + len(reply)
        tokens[start:middle], tokens[middle:end] = ask, reply
        supervised[middle:end] = True
        if branches:
            branch_ids[start:end] = index + 1
            positions[start:end] = base + np.arange(end - start)
        answers.append((middle, end))
        start = end
    return Encoded(tokens, supervised, branch_ids, positions, image_index, tuple(answers))


def next_token_targets(encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """Targets [T] and loss weights [T]: position t predicts token t + 1 if that token is supervised.

    Within a branch the last prompt token is the one before the answer, so shifting by one row index is
    right for branches as well; the first token of a branch is never supervised, hence nothing is predicted
    across a branch boundary.
    """
    targets = np.zeros_like(encoded.tokens)
    weights = np.zeros(encoded.length, np.float32)
    targets[:-1] = encoded.tokens[1:]
    weights[:-1] = encoded.supervised[1:]
    return targets, weights
