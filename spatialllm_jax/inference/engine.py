"""The engine: a model folder -> answers, in batches of static shape, each picture encoded once."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Bool, Float, Int, UInt8
from tqdm import tqdm

from spatialllm_jax.data import chat
from spatialllm_jax.data import tokenizer as tokenizers
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference import lanes, pictures, schedule, scoring
from spatialllm_jax.inference.board import Board, Request, parts
from spatialllm_jax.inference.options import scoring_rows
from spatialllm_jax.inference.prompts import ChatSettings, Picture, Prompt, bucket, open_prompt, show
from spatialllm_jax.models import store
from spatialllm_jax.models.attention import platform
from spatialllm_jax.models.config import ModelConfig
from spatialllm_jax.models.llama import list_layers
from spatialllm_jax.models.spatialllm import SpatialLLM, abstract_params
from spatialllm_jax.parallel.rules import param_shardings

_IMAGE_BATCH = 16     # images per encoder call, where nobody waits for one of them
_REMEMBERED = 64      # images whose features are kept
_LISTED = 32          # layers of a model that a CPU runs one by one (`models.llama.Llama`)

T = TypeVar("T")
Coming = dict[Picture | None, Prompt]       # pictures, by themselves, each in a prompt that shows it


class Features(Protocol):
    """Stored features by image id (`data.features.FeatureStore`)."""

    def __getitem__(self, image_id: str, /) -> np.ndarray: ...


class Likelihoods(NamedTuple):
    """Of each option of a prompt, as the whole answer.

    Attributes:
        logp: log-likelihood, the end mark included.
        greedy: whether greedy generation would say it.
        tokens: how many it has, the end mark included.
    """

    logp: Float[np.ndarray, O]
    greedy: Bool[np.ndarray, O]
    tokens: Int[np.ndarray, O]


@dataclasses.dataclass
class Engine:
    """Answers questions with one model.

    Attributes:
        model, params: the module and its nested parameters.
        tokenizer, settings: how text and pictures become arrays.
        batch_size: questions answered, or rows scored, at a time, at most; the last of them are padded, so that one
            program serves all.
        features: optional stored features by image id, instead of running the encoders.
        mesh: devices that `params` are spread over, or None for a single one.
        image_batches: images per encoder call, ascending; each is one program. Where there is one size, a few images
            are not padded to it.
    """

    model: SpatialLLM
    params: Any
    tokenizer: tokenizers.Tokenizer
    settings: ChatSettings
    batch_size: int = 16
    features: Features | None = None
    mesh: jax.sharding.Mesh | None = None
    image_batches: tuple[int, ...] = (_IMAGE_BATCH,)
    _recent: collections.OrderedDict[Picture | None, np.ndarray] = dataclasses.field(
        default_factory=collections.OrderedDict, repr=False)
    _board: Board | None = dataclasses.field(default=None, repr=False)
    # Rows of the scoring program, and images of the encoders', so far.
    _scored: int = dataclasses.field(default=0, repr=False)
    _encoded: int = dataclasses.field(default=0, repr=False)

    def score(self, prompts: Sequence[Prompt], *, row_length: int = 512, beside: int = 0,
              pixels: Mapping[Picture | None, np.ndarray] | None = None, show_progress: bool = False,
              ) -> list[np.ndarray]:
        """Log-likelihood of every option of every prompt, in order; see `likelihoods`."""
        return [found.logp for found in self.likelihoods(
            prompts, row_length=row_length, beside=beside, pixels=pixels, show_progress=show_progress)]

    def likelihoods(self, prompts: Sequence[Prompt], *, row_length: int = 512, beside: int = 0,
                    pixels: Mapping[Picture | None, np.ndarray] | None = None, show_progress: bool = False,
                    ) -> list[Likelihoods]:
        """What the model thinks of every option of every prompt, in order.

        Args:
            row_length: tokens of a row, which holds as many options of a picture's questions as fit.
            beside: most options of a row, where one program has to serve later calls as well; 0 for what fits.
            pixels: see `visual`.
        """
        with self.devices():
            return self._likelihoods(prompts, row_length, beside, pixels, show_progress)

    def _likelihoods(self, prompts: Sequence[Prompt], row_length: int, beside: int,
                     pixels: Mapping[Picture | None, np.ndarray] | None, show_progress: bool) -> list[Likelihoods]:
        rows = scoring_rows(self.tokenizer, self.settings, prompts, length=row_length, beside=beside,
                            layout=functools.partial(pictures.layout, self.model.config))
        self._scored = self._few(len(rows), self.batch_size, self._scored)
        # As many pictures a row as those beside it have: another number is another program.
        batches = [alike[start:start + self._scored] for alike in _by_places(rows, lambda row: row.shown)
                   for start in range(0, len(alike), self._scored)]
        coming = self._coming(row.shown for batch in batches for row in batch)
        options = beside or bucket(max((len(row.owners) for row in rows), default=1), 8)
        found = [Likelihoods(np.zeros(n := len(prompt.options)), np.zeros(n, bool), np.zeros(n, int))
                 for prompt in prompts]
        for part in tqdm(batches, desc="scoring", unit="batch", disable=not show_progress):
            padded = part + [part[-1]] * (self._scored - len(part))
            visual = self.visual([row.shown for row in padded], pixels, coming)
            arrays = {name: np.stack([row.arrays[name] for row in padded]) for name in padded[0].arrays}
            scores, unlikely = jax.device_get(scoring.option_scores(
                self.model, self.params, visual=visual, options=options, **arrays))
            for k, row in enumerate(part):
                for place, (prompt, option) in enumerate(row.owners):
                    found[prompt].logp[option] = scores[k, place]
                    found[prompt].greedy[option] = unlikely[k, place] == 0
                    found[prompt].tokens[option] = (row.arrays["owner_ids"] == place + 1).sum()
        return found

    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0,
                 top_p: float = 1.0, seed: int = 0, pixels: Mapping[Picture | None, np.ndarray] | None = None,
                 show_progress: bool = False) -> list[str]:
        """The model's own words for every prompt, in order; captions end with their line.

        Args:
            temperature, top_p, seed: of the draws, see `board.Request`.
            pixels: see `visual`.
        """
        requests = [self.request(prompt, max_new_tokens, temperature, top_p, seed) for prompt in prompts]
        answers = [""] * len(prompts)
        with tqdm(total=len(prompts), desc="generating", unit="answer", disable=not show_progress) as bar:
            def done(index: int, tokens: list[int]) -> None:
                text = self.tokenizer.decode([token for token in tokens if token not in self.stops])
                answers[index] = text if prompts[index].question else text.partition("\n")[0]
                bar.update()

            def answer(alike: Sequence[int]) -> None:
                part, coming = [requests[k] for k in alike], self._coming(prompts[k] for k in alike)
                self._prepared(part, max_new_tokens, prompts[alike[0]].places).answer(
                    part, lambda own: self.visual([prompts[alike[k]] for k in own], pixels, coming),
                    lambda own, tokens: done(alike[own], tokens))

            try:
                with self.devices():
                    for alike in _by_places(range(len(prompts)), prompts.__getitem__):
                        answer(alike)
            except BaseException:
                self._board = None      # lanes that were left are nobody's
                raise
        return answers

    @functools.cached_property
    def stops(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return chat.stop_ids(self.tokenizer, self.settings.template)

    def request(self, prompt: Prompt, limit: int, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
                shape: lanes.Shape | None = None) -> Request:
        """What a board is asked for an answer to `prompt`.

        Args:
            limit: tokens of the answer, at most.
            shape: the board's lanes, where they are not made for the requests.

        Raises:
            UserError: the prompt is longer than what `shape` holds.
        """
        layout = pictures.layout(self.model.config, prompt)
        encoded = show(open_prompt(self.tokenizer, self.settings, prompt.question, *layout.sizes,
                                   history=prompt.history, system=prompt.system), layout.tokens)
        if shape is not None and encoded.length > shape.context:
            raise UserError(f"the prompt has {encoded.length} tokens, {sum(layout.sizes)} of them for the picture, and "
                            f"may have {shape.context}")
        before, after = schedule.divided(encoded, shape)
        # Where pictures stand among words is part of what has to be equal: their positions have no tokens.
        return Request((prompt.pictures, before.tokens.tobytes(), before.image_index.tobytes()), before, after, limit,
                       temperature, top_p, seed, prompt.number)

    def _prepared(self, requests: Sequence[Request], new: int, places: int) -> Board:
        """Lanes that these requests fit into: those of the last call, if they do."""
        held = self._board
        if held is not None and held.state.visual.shape[1] != pictures.row_tokens(self.model.config, places):
            held = None
        shape = schedule.fitting(requests, self.batch_size, new, held.shape if held else None)
        if held is None or held.shape != shape:
            self._board = held = None      # its memory first
            self._board = held = self.board(shape, places)
        return held

    def board(self, shape: lanes.Shape, places: int = 1, *, open: bool = False) -> Board:
        """Empty lanes for prompts with so many `places` of pictures; `open` for requests that arrive while others are
        answered."""
        state = lanes.empty(self.model, shape, pictures.row_tokens(self.model.config, places))
        if self.mesh is None and isinstance(leaf := jax.tree.leaves(self.params)[0], jax.Array):
            # Where they will be when they come out of a program: otherwise the first is compiled twice.
            state = jax.device_put(state, leaf.sharding)
        return Board(self.model, self.params, shape, np.array(self.stops, np.int32), state, open)

    def devices(self) -> contextlib.AbstractContextManager[Any]:
        """What everything on this engine's devices runs in."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def longest_layout(self) -> int:
        """Positions that a picture takes, at most."""
        return pictures.longest(self.model.config)

    def visual(self, prompts: Sequence[Prompt], pixels: Mapping[Picture | None, np.ndarray] | None = None,
               coming: Coming | None = None) -> jax.Array:
        """Visual tokens [B, N, D] of each prompt's pictures, which have as many `places`; those of text alone are never
        looked at.

        Args:
            pixels: of pictures that were made into arrays before (`pixels`).
            coming: of the pictures that will be wanted next, a few are encoded along, so that the encoders' batch is
                full; these are taken out.
        """
        rows = {prompt.pictures: prompt.each for prompt in prompts}
        wanted = {one.picture: one for row in rows.values() for one in row}
        features = self._features([*wanted.values()], pixels or {}, coming or {})
        # Every picture takes as many slots as the most tiled one could, a row as many as its places, and the batch is
        # full, so that the connector compiles once. What fills the slots left over is never looked at.
        slots, places = self.model.config.num_slots, prompts[0].places
        stacked = np.stack([_filled(np.concatenate([_filled(features[one.picture], slots) for one in row]),
                                    places * slots) for row in rows.values()])
        place = {shown: row for row, shown in enumerate(rows)}
        return _connect(self.model, self.params, _filled(stacked, len(prompts)),
                        np.array([place[prompt.pictures] for prompt in prompts]))

    def _features(self, prompts: Sequence[Prompt], known: Mapping[Picture | None, np.ndarray], coming: Coming,
                  ) -> dict[Picture | None, Float[np.ndarray, "n P C"]]:
        """Features of distinct pictures, one entry per image: remembered, stored, or computed now."""
        found: dict[Picture | None, np.ndarray] = {}
        missing = []
        for prompt in prompts:
            coming.pop(prompt.picture, None)
            if not prompt.pictured:
                c = self.model.config
                found[None] = np.zeros((1, c.connector.grid**2, sum(v.width for v in c.vision)), jnp.dtype(c.dtype))
            elif prompt.picture in self._recent:
                self._recent.move_to_end(prompt.picture)
                found[prompt.picture] = self._recent[prompt.picture]
            elif self._stored(prompt):
                assert self.features is not None
                found[prompt.picture] = np.asarray(self.features[prompt.image_id], np.float32)[None]
            else:
                missing.append(prompt)
        if missing:
            room = -len(missing) * self.model.config.num_slots % _IMAGE_BATCH // self.model.config.num_slots
            self._encoded = self._few((len(missing) + len(coming)) * self.model.config.num_slots, _IMAGE_BATCH,
                                      self._encoded)
            missing += [coming.pop(picture) for picture in [*itertools.islice(coming, room)]]
        sizes = self.image_batches if len(self.image_batches) > 1 else (self._encoded,)
        for start in range(0, len(missing), _IMAGE_BATCH):
            part = missing[start:start + _IMAGE_BATCH]
            pixels = [known[prompt.picture] if prompt.picture in known else self.pixels(prompt) for prompt in part]
            flat = np.concatenate(pixels)
            values = np.concatenate([self._encode(flat[start:start + size], size)
                                     for start, size in parts(len(flat), sizes)])
            ends = np.cumsum([len(images) for images in pixels])
            for prompt, value in zip(part, np.split(values, ends[:-1]), strict=True):
                found[prompt.picture] = self._recent[prompt.picture] = value
        while len(self._recent) > max(1, _REMEMBERED // self.model.config.num_slots):
            self._recent.popitem(last=False)
        return found

    def _few(self, count: int, most: int, so_far: int) -> int:
        """Size of a program for so many things: they are not padded to `most`, unless there is such a program."""
        return min(most, max(so_far, most if self.mesh is not None else bucket(count, 1)))

    def _stored(self, prompt: Prompt) -> bool:
        """Whether a picture's features are read, not computed."""
        return self.features is not None and prompt.image is not None and not prompt.marks

    def _coming(self, prompts: Iterable[Prompt]) -> Coming:
        """The pictures of prompts that have to be encoded, in their order."""
        return {one.picture: one for prompt in prompts for one in prompt.each
                if one.pictured and one.picture not in self._recent and not self._stored(one)}

    def forget(self) -> None:
        """Drops the features of pictures seen so far; while nobody is answered."""
        self._recent.clear()

    def warm_encoders(self) -> Iterator[None]:
        """Compiles the encoders for every size of `image_batches`, one after the other."""
        for size in self.image_batches:
            self._encode(self.pixels(Prompt("", None, "?"))[:1], size)
            yield

    def _encode(self, pixels: UInt8[np.ndarray, "n S S 3"], size: int) -> Float[np.ndarray, "n P C"]:
        return np.asarray(_encode(self.model, self.params, _filled(pixels, size)))[:len(pixels)]

    def pixels(self, prompt: Prompt) -> UInt8[np.ndarray, "n S S 3"]:
        """The images that a prompt's picture becomes, as the model sees them: one, or with tiling the whole and its
        tiles. Raises `data.images.ImageError` for what is no picture."""
        return pictures.pixels(self.model.config, self.settings, prompt)


def _by_places(things: Sequence[T], shown: Callable[[T], Prompt]) -> list[list[T]]:
    """Things whose prompts' pictures take as many places, together."""
    found: dict[int, list[T]] = {}
    for thing in things:
        found.setdefault(shown(thing).places, []).append(thing)
    return list(found.values())


def _filled(values: np.ndarray, count: int) -> np.ndarray:
    """`values` with the last one repeated until there are `count`."""
    return np.concatenate([values, np.repeat(values[-1:], count - len(values), axis=0)])


@functools.partial(jax.jit, static_argnames="model")
def _encode(model: SpatialLLM, params: Any, pixels: jax.Array) -> jax.Array:
    features: Any = model.apply({"params": params}, pixels, method="encode_images")
    return features


@functools.partial(jax.jit, static_argnames="model")
def _connect(model: SpatialLLM, params: Any, features: jax.Array, rows: jax.Array) -> jax.Array:
    """Visual tokens of these rows of features."""
    tokens: Any = model.apply({"params": params}, features=jnp.asarray(features), method="visual_tokens")
    return tokens[rows]


def load_engine(folder: str | Path, *, batch_size: int = 16, features: Features | None = None,
                mesh: jax.sharding.Mesh | None = None) -> Engine:
    """An engine from a model folder written by training or conversion; on one device, or spread over a mesh.

    Raises:
        UserError: when the folder is not one of a whole model, or parts of it are missing.
    """
    if not isinstance(config := store.load_config(folder), ModelConfig):
        raise UserError(f"{folder} holds a {type(config).__name__}, not a whole model; give a stage-2 model folder")
    try:
        settings = ChatSettings(**json.loads((Path(folder) / "chat.json").read_text()))
    except (OSError, json.JSONDecodeError, TypeError):
        raise UserError(f"{folder} has no readable chat.json (template, system, image_size, resize)") from None
    return build_engine(store.open_weights(folder), settings, tokenizers.load(folder), batch_size=batch_size,
                        features=features, mesh=mesh)


def build_engine(weights: store.Weights, settings: ChatSettings, tokenizer: tokenizers.Tokenizer, *,
                 batch_size: int = 16, features: Features | None = None,
                 mesh: jax.sharding.Mesh | None = None) -> Engine:
    """An engine from opened weights of a whole model.

    Raises:
        UserError: parameters are missing.
    """
    config: ModelConfig = weights.config
    abstract = abstract_params(config)
    store.check_shapes(weights.where, weights.shapes, traverse_util.flatten_dict(abstract, sep="/"))
    shardings = None if mesh is None else traverse_util.flatten_dict(param_shardings(abstract, mesh), sep="/")
    params = traverse_util.unflatten_dict(weights.load(shardings=shardings), sep="/")
    model, params = arranged(config, params, mesh)
    return Engine(model, params, tokenizer, settings, batch_size, features, mesh)


def arranged(config: ModelConfig, params: dict[str, Any], mesh: jax.sharding.Mesh | None = None,
             ) -> tuple[SpatialLLM, dict[str, Any]]:
    """The module, and its parameters as the platform generates fastest with; see `models.llama.Llama`."""
    listed = mesh is None and platform() == "cpu" and config.llm.depth <= _LISTED
    if listed:
        params = {**params, "llm": list_layers(params["llm"])}
    return SpatialLLM(config, listed), params
