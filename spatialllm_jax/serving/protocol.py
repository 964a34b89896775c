"""Bodies of OpenAI's chat format -> prompts; every field is read, refused by name, or known to change nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from spatialllm_jax.inference.lanes import Shape
from spatialllm_jax.inference.live import MOST_OPTIONS, Sampling
from spatialllm_jax.inference.prompts import Prompt, picture_id
from spatialllm_jax.questions.types import Region
from spatialllm_jax.serving import pictures
from spatialllm_jax.serving.errors import RequestError, unknown_model, wrong
from spatialllm_jax.serving.limits import Limits

# Fields that say who asks or how it is billed, not what is answered.
_IDLE = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Fields that change answers, with the values at which they do not.
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "logprobs": (False,),
    "top_logprobs": (0,), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "parallel_tool_calls": (True, False), "modalities": (["text"],), "response_format": ({"type": "text"},),
}
_INSTEAD = {"n": "ask several times with other seeds", "logprobs": "give `options` to have answers scored",
            "response_format": "the model answers in plain text"}
_OURS = {"model", "messages", "stream", "stream_options", "temperature", "top_p", "max_tokens",
         "max_completion_tokens", "stop", "seed", "regions", "options"}
_MOST_STOPS, _MOST_CHARACTERS = 4, 64      # stop texts, and characters of each
_PER_TOKEN = 64     # characters of a prompt per token of context, beyond which its tokens need not be counted


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a body asks for.

    Attributes:
        stream: whether the answer is sent in pieces, `usage` whether its tokens are counted at the end of them.
    """

    prompt: Prompt
    sampling: Sampling
    stream: bool
    usage: bool


def chat(body: bytes, model: str, shape: Shape, limits: Limits, controls: Sequence[str] = ()) -> Asked:
    """Reads a body of /v1/chat/completions.

    Args:
        model: the model's name here.
        shape: of the lanes: an answer has at most `shape.new` tokens, and asking for more is asking for these.
        controls: texts that stand for the template's own marks, which nobody may write.

    Raises:
        RequestError: a field that cannot be, or that this server does not know.
    """
    fields = _object(body)
    for key, value in fields.items():
        if key in _ONLY and value is not None and value not in _ONLY[key]:
            raise wrong(key, f"is not supported here; {_INSTEAD.get(key, 'leave it out')}")
        if key not in _OURS and key not in _ONLY and key not in _IDLE:
            raise RequestError(400, f"{key}: unknown field; leave it out", "unknown_parameter", key)
    named = fields.get("model")
    if not isinstance(named, str) or not named:
        raise wrong("model", f"is missing; this server has {model!r}")
    if named != model:
        raise unknown_model(named, model)
    system, history, question, image = _conversation(fields.get("messages"), limits, controls)
    characters = sum(map(len, (system or "", question, *itertools.chain.from_iterable(history))))
    if characters > _PER_TOKEN * shape.context:
        raise RequestError(400, f"messages: {characters:,} characters are more than a prompt of {shape.context} tokens "
                           "can hold", "context_length_exceeded", "messages")
    marks = regions(fields.get("regions"), limits.regions)
    if marks and image is None:
        raise wrong("regions", "there is no picture to draw them on")
    options = _texts(fields.get("options"), "options", MOST_OPTIONS, controls)
    if options and len(options) < 2:
        raise wrong("options", "give two or more answers to choose from")
    if options and history:
        raise wrong("options", "are scored on a first question; leave out the turns before it")
    data = b"" if image is None else image
    prompt = Prompt(picture_id(data), data, question, options, marks, history, system)
    streamed = fields.get("stream_options") or {}
    if not isinstance(streamed, Mapping):
        raise wrong("stream_options", "must be an object")
    return Asked(prompt, _sampling(fields, shape.new), _flag(fields, "stream"), _flag(streamed, "include_usage"))


def marked(body: bytes, limits: Limits) -> Prompt:
    """Reads a body of /v1/marked: {"image": data URL, "regions": [...]}."""
    fields = _object(body)
    data = pictures.from_url(fields.get("image"), "image", limits.pixels)
    return Prompt(picture_id(data), data, "?", marks=regions(fields.get("regions"), limits.regions))


def regions(value: Any, most: int) -> tuple[Region, ...]:
    """Boxes to draw: [{"bbox": [x1, y1, x2, y2], "label": "0"}], in shares of the picture's width and height."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > most:
        raise wrong("regions", f"must be a list of at most {most}")
    found: list[Region] = []
    for index, one in enumerate(value):
        where = f"regions[{index}]"
        if not isinstance(one, Mapping) or not one.keys() <= {"bbox", "label"}:
            raise wrong(where, 'must be an object with "bbox" and "label"')
        box, label = one.get("bbox"), one.get("label", str(index))
        if not isinstance(box, list) or len(box) != 4 or not all(_number(x) for x in box):
            raise wrong(f"{where}.bbox", "must be four numbers x1, y1, x2, y2")
        x1, y1, x2, y2 = map(float, box)
        if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
            raise wrong(f"{where}.bbox", "needs 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1, as shares of the picture")
        if not isinstance(label, str) or not 0 < len(label) <= 3 or not (label.isascii() and label.isalnum()):
            raise wrong(f"{where}.label", "must be one to three letters or digits")
        if label in {region.label for region in found}:
            raise wrong(f"{where}.label", f"{label!r} is there twice")
        found.append(Region(label, (x1, y1, x2, y2), ""))
    return tuple(found)


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON", "invalid_json") from None
    if not isinstance(fields, dict):
        raise RequestError(400, "the body must be a JSON object", "invalid_json")
    return fields


def _conversation(messages: Any, limits: Limits, controls: Sequence[str],
                  ) -> tuple[str | None, tuple[tuple[str, str], ...], str, bytes | None]:
    """(system text, earlier turns, question, picture)."""
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "must be a list of messages")
    said: list[tuple[str, str]] = []
    urls: list[tuple[str, Any]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping) or message.get("role") not in ("system", "developer", "user", "assistant"):
            raise wrong(f"{where}.role", "must be system, developer, user or assistant")
        text, pictured = _content(message.get("content"), f"{where}.content")
        if pictured and message["role"] != "user":
            raise wrong(f"{where}.content", "pictures belong into messages of the user")
        if found := next((mark for mark in controls if mark in text), None):
            raise wrong(f"{where}.content", f"holds {found}, which marks turns in this model's template")
        said.append((str(message["role"]), text))
        urls += pictured
    if len(urls) > limits.images:
        raise RequestError(400, f"messages: {len(urls)} pictures are more than {limits.images}; this model reads one "
                           "picture per conversation", "too_many_images", "messages")
    system = said.pop(0)[1] if said[0][0] in ("system", "developer") else None
    for index, (role, text) in enumerate(said):
        if role != ("assistant" if index % 2 else "user"):
            raise wrong("messages", "user and assistant must take turns, behind one system message at most")
        if not text.strip():
            raise wrong("messages", f"the {role}'s message {index // 2 + 1} has no text")
    if len(said) % 2 == 0:
        raise wrong("messages", "the last message must be the user's")
    texts = [text for _, text in said]
    image = pictures.from_url(urls[0][1], urls[0][0], limits.pixels) if urls else None
    return system, tuple(zip(texts[:-1:2], texts[1::2], strict=True)), texts[-1], image


def _content(content: Any, where: str) -> tuple[str, list[tuple[str, Any]]]:
    """(text, pictures with where they stand) of a message."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise wrong(where, "must be a text or a list of parts")
    texts, urls = [], []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url" and isinstance(part.get("image_url"), Mapping):
            urls.append((f"{where}[{index}].image_url.url", part["image_url"].get("url")))
        else:
            raise wrong(f"{where}[{index}]", "must be of type text or image_url")
    return "\n".join(texts), urls


def _sampling(fields: Mapping[str, Any], most_tokens: int) -> Sampling:
    numbers = {}
    for key, low, high, default in (("temperature", 0, 2, 0.0), ("top_p", 0, 1, 1.0)):
        value = fields.get(key)
        if value is not None and not (_number(value) and low <= value <= high):
            raise wrong(key, f"must be a number from {low} to {high}")
        numbers[key] = default if value is None else float(value)
    limit = most_tokens
    for key in ("max_tokens", "max_completion_tokens"):
        value = fields.get(key)
        if value is not None and not (type(value) is int and value >= 1):
            raise wrong(key, "must be a whole number, at least 1")
        limit = limit if value is None else min(limit, value)
    seed = fields.get("seed")
    if seed is not None and type(seed) is not int:
        raise wrong("seed", "must be a whole number")
    stop = fields.get("stop")
    return Sampling(limit, **numbers, seed=secrets.randbits(32) if seed is None else seed % (1 << 32),
                    stop=_texts([stop] if isinstance(stop, str) else stop, "stop", _MOST_STOPS, (), _MOST_CHARACTERS))


def _texts(value: Any, key: str, most: int, controls: Sequence[str], longest: int | None = None) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > most or not all(isinstance(x, str) and x for x in value):
        raise wrong(key, f"must be a list of at most {most} texts, none of them empty")
    if longest is not None and any(len(x) > longest for x in value):
        raise wrong(key, f"texts have at most {longest} characters")
    if any(mark in x for x in value for mark in controls):
        raise wrong(key, "holds a mark of this model's template")
    return tuple(value)


def _flag(fields: Mapping[str, Any], key: str) -> bool:
    value = fields.get(key)
    if value is not None and not isinstance(value, bool):
        raise wrong(key, "must be true or false")
    return bool(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
