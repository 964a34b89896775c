"""The model and the batches of `launch.bench_train`: one set of samples, laid out as either side wants it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch import bench_report
from spatialllm_jax.data import lengths
from spatialllm_jax.data.packing import FullRows
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import CLIP_MEAN, CLIP_STD

IGNORED = -100          # transformers' label of a position without a loss
_PATCH = 14
_FRAME = 3              # tokens before the picture
_WINDOW = 1024          # samples packed together, the pipeline's default
_SLOTS = 6              # images per packed row, as in the full-size stages
# LLaVA-1.5's numbers, to which the lengths' distribution is scaled.
_LLAVA_TOKENS = 576
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Size:
    """The shape of the model and its batches.

    Attributes:
        width, layers, vocabulary: of the language model, in Llama-3's proportions (four queries to a key, an MLP of
            3.5 times the width).
        grid: visual tokens per side.
        rows, length: of the batch of the timed step; every row is full.
        packed_rows: of a packed batch.
    """

    width: int
    layers: int
    vocabulary: int
    grid: int
    rows: int
    length: int
    packed_rows: int = 2

    @property
    def image_tokens(self) -> int:
        """Visual tokens per picture."""
        return self.grid**2

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        return self.grid * _PATCH

    @property
    def packed(self) -> tuple[int, int]:
        """(rows, length) of a packed batch, rows twice as long as the longest sample."""
        return self.packed_rows, 2 * self.length


@dataclasses.dataclass(frozen=True)
class Sample:
    """Token ids of one conversation, with `image_token` where its picture goes, and which of them are answers."""

    tokens: np.ndarray
    supervised: np.ndarray
    picture: np.ndarray | None


def write_model(size: Size, folder: Path, seed: int, noise: float = 0.0) -> int:
    """A random LLaVA of transformers' (CLIP, two-layer connector, Llama) as `save_pretrained` writes it;
    returns its parameters.

    Args:
        noise: standard deviation of what is added to every parameter, for a model that is another one.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    heads = size.width // 64
    vision = transformers.CLIPVisionConfig(
        hidden_size=size.width // 2, intermediate_size=2 * size.width, num_hidden_layers=6,
        num_attention_heads=heads // 2, image_size=size.image_size, patch_size=_PATCH)
    text = transformers.LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=7 * size.width // 2,
        num_hidden_layers=size.layers, num_attention_heads=heads, num_key_value_heads=heads // 4,
        max_position_embeddings=size.length, rope_theta=500000.0)       # type: ignore[call-arg]
    torch.manual_seed(seed)
    model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_token(size),
        image_seq_length=size.image_tokens))
    with torch.no_grad():
        # A head of near-uniform predictions has the same loss whatever lies below it.
        model.lm_head.weight.mul_(4.0)
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def image_token(size: Size) -> int:
    """The token id that stands for a visual token: the vocabulary's last."""
    return size.vocabulary - 1


def draw(size: Size, count: int, pictured: bool, share: float, rng: np.random.Generator) -> Sample:
    """A conversation of `count` positions whose last `share` of text is the answer."""
    tokens = rng.integers(3, image_token(size), count)
    text = count - _FRAME
    picture = None
    if pictured:
        tokens[_FRAME:_FRAME + size.image_tokens] = image_token(size)
        text -= size.image_tokens
        picture = rng.integers(0, 256, (size.image_size, size.image_size, 3), dtype=np.uint8)
    supervised = np.arange(count) >= count - max(round(share * text), 1)
    return Sample(tokens, supervised, picture)


def full_rows(size: Size, share: float, rng: np.random.Generator) -> list[Sample]:
    """The samples of the timed step: a picture each, all of the full length."""
    return [draw(size, size.length, True, share, rng) for _ in range(size.rows)]


def packed_rows(size: Size, batches: int, share: float, rng: np.random.Generator) -> list[list[list[Sample]]]:
    """Batches of rows of samples: lengths like Mix665K's, scaled to this size, packed as the pipeline packs them.

    A window of samples is packed and `batches` batches of its rows are kept.
    """
    counts, images = scaled_lengths(size, _WINDOW, int(rng.integers(1 << 30)))
    number, length = size.packed
    made = FullRows(length, _SLOTS)(counts.tolist(), images.tolist(), rng)[:batches * number]
    rows = [[draw(size, int(counts[i]), bool(images[i]), share, rng) for i in members] for _, members in made]
    return [rows[start:start + number] for start in range(0, len(rows), number)]


def scaled_lengths(size: Size, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, numbers of images) like Mix665K's, its texts scaled as its 576 visual tokens are."""
    counts, images = lengths.like_mix665k(count, seed=seed)
    scale = size.image_tokens / _LLAVA_TOKENS
    text = np.maximum(np.round((counts - _LLAVA_TOKENS * images) * scale), 4).astype(int)
    return np.minimum(text + _FRAME + size.image_tokens * images, size.length), images


def grouped(samples: Sequence[Sample], batch: int, rng: np.random.Generator) -> list[list[Sample]]:
    """LLaVA's `group_by_modality_length` on one device: shuffled batches of pictures or of texts alone, what is left
    of both together, and every batch padded to its longest sample."""
    kinds = [[s for s in samples if (s.picture is not None) == pictured] for pictured in (True, False)]
    result, rest = [], []
    for kind in kinds:
        shuffled = [kind[i] for i in rng.permutation(len(kind))]
        whole = len(shuffled) // batch * batch
        result += [shuffled[start:start + batch] for start in range(0, whole, batch)]
        rest += shuffled[whole:]
    return result + [rest[start:start + batch] for start in range(0, len(rest), batch)]


def as_they_come(samples: Sequence[Sample], batch: int) -> list[list[Sample]]:
    """Batches in order of arrival."""
    return [list(samples[start:start + batch]) for start in range(0, len(samples), batch)]


def by_length(samples: Sequence[Sample], batch: int) -> list[list[Sample]]:
    """Batches of neighbours in length, with hardly any padding: more than LLaVA's sampler does on one device."""
    order = sorted(samples, key=lambda s: (s.picture is None, len(s.tokens)))
    return [order[start:start + batch] for start in range(0, len(order), batch)]


def density(batches: Sequence[Sequence[Sample]]) -> float:
    """Share of positions used when every batch is padded to its longest sample."""
    used = sum(len(s.tokens) for batch in batches for s in batch)
    return used / sum(len(batch) * max(len(s.tokens) for s in batch) for batch in batches)


def supervised_tokens(samples: Sequence[Sample]) -> int:
    """Positions with a loss."""
    return sum(int(s.supervised.sum()) for s in samples)


def for_ours(size: Size, rows: Sequence[Sequence[Sample]], length: int, slots: int = _SLOTS) -> Arrays:
    """The arrays of a `Batch`: the samples of every row one after the other, then padding."""
    shape = len(rows), length
    integers = ("tokens", "targets", "positions", "segment_ids", "branch_ids", "source_ids")
    batch: dict[str, Any] = {name: np.zeros(shape, np.int32) for name in integers}
    batch["loss_weights"], batch["image_index"] = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
    batch["images"] = np.zeros((len(rows), slots, size.image_size, size.image_size, 3), np.uint8)
    batch["image_mask"] = np.zeros((len(rows), slots), bool)
    for r, samples in enumerate(rows):
        start = slot = 0
        for segment, sample in enumerate(samples, 1):
            here = slice(start, start + len(sample.tokens))
            visual = sample.tokens == image_token(size)
            batch["tokens"][r, here] = np.where(visual, 0, sample.tokens)
            batch["targets"][r, here] = np.roll(sample.tokens, -1)
            batch["loss_weights"][r, here] = np.append(sample.supervised[1:], False)
            batch["positions"][r, here] = np.arange(len(sample.tokens))
            batch["segment_ids"][r, here] = segment
            batch["image_index"][r, here] = np.where(
                visual, slot * size.image_tokens + np.cumsum(visual) - 1, -1)
            if sample.picture is not None:
                batch["images"][r, slot], batch["image_mask"][r, slot] = sample.picture, True
                slot += 1
            start = here.stop
    return batch


def for_peer(samples: Sequence[Sample]) -> Arrays:
    """What transformers' LLaVA takes, padded on the right to the longest sample, pixels normalised as CLIP's are.

    Without padding there is no `attention_mask`, and without pictures no `pixel_values`.
    """
    shape = len(samples), max(len(s.tokens) for s in samples)
    batch: Arrays = {"input_ids": np.zeros(shape, np.int64), "labels": np.full(shape, IGNORED, np.int64)}
    mask = np.zeros(shape, np.int64)
    for r, sample in enumerate(samples):
        here = slice(0, len(sample.tokens))
        batch["input_ids"][r, here], mask[r, here] = sample.tokens, 1
        batch["labels"][r, here] = np.where(sample.supervised, sample.tokens, IGNORED)
    if not mask.all():
        batch["attention_mask"] = mask
    pictures = [s.picture for s in samples if s.picture is not None]
    if pictures:
        pixels = (np.stack(pictures) / 255 - CLIP_MEAN) / CLIP_STD
        batch["pixel_values"] = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
    return batch


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a model, its weights, and the cores of either side."""
    parser.add_argument("--width", type=int, default=512, help="of the language model, a multiple of 256")
    parser.add_argument("--layers", type=int, default=8, help="of the language model")
    parser.add_argument("--vocabulary", type=int, default=8192, help="tokens of the language model")
    parser.add_argument("--grid", type=int, default=12, help="visual tokens per side of a picture")
    parser.add_argument("--cores", type=int, default=bench_report.cores(), help="cores and threads of either side")
    parser.add_argument("--perturb", type=float, default=0.0,
                        help="noise on the peer's weights, to see that another model is refused")
    parser.add_argument("--seed", type=int, default=0, help="of weights and samples")


def size_of(args: argparse.Namespace, rows: int, length: int, packed_rows: int = 2) -> Size:
    """The size that these flags ask for. Raises UserError for one that cannot be."""
    if args.width < 256 or args.width % 256:
        raise UserError(f"--width {args.width} must be a multiple of 256: four heads of 64 to a key")
    if args.grid < 2 or args.layers < 1:
        raise UserError("--grid must be at least 2, and --layers at least 1")
    if args.vocabulary < 64:
        raise UserError(f"--vocabulary {args.vocabulary} is too small; give at least 64")
    return Size(args.width, args.layers, args.vocabulary, args.grid, rows, length, packed_rows)
