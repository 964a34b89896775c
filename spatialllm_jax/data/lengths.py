"""How long samples are, how well rows hold them, and how many rows a step of so many samples needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int

from spatialllm_jax.data.pipeline import RowConfig
from spatialllm_jax.data.samples import SourceConfig, TextConfig
from spatialllm_jax.data.stream import Sample, mix
from spatialllm_jax.data.tokenizer import Tokenizer
from spatialllm_jax.errors import UserError

MEASURED = 4096         # samples
_LLAVA_BATCH = 16       # samples per device in LLaVA-v1.5's stage 2, on 8 devices
_LLAVA_DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """The size of a step.

    Attributes:
        batch_size: rows per step.
        samples_per_row: mean over the measured samples.
        density: share of the rows' positions that hold a sample.
        measured: number of samples these two come from.
        total: samples in one pass of the mixture; None for a mixture by weights.
    """

    batch_size: int
    samples_per_row: float
    density: float
    measured: int
    total: int | None

    @property
    def samples_per_step(self) -> float:
        """Mean number of samples in a step."""
        return self.batch_size * self.samples_per_row

    @property
    def steps(self) -> int | None:
        """Steps for one pass, None for a mixture by weights."""
        return None if self.total is None else max(1, round(self.total / self.samples_per_step))

    def __str__(self) -> str:
        text = (f"{self.batch_size} rows hold {self.samples_per_step:.1f} samples per step ({self.samples_per_row:.2f} "
                f"per row, {self.density:.1%} of the positions used, measured on {self.measured:,} samples)")
        return text if self.total is None else f"{text}; one pass of {self.total:,} samples is {self.steps:,} steps"


def plan(sources: Sequence[SourceConfig], text: TextConfig, rows: RowConfig, tokenizer: Tokenizer, *, seed: int,
         ways: int = 1) -> Plan:
    """The number of rows per step that keeps `rows.samples` samples in it on average, or what `rows.batch_size` gives.

    Packs the first 4,096 samples of the mixture (all of a smaller pass), as training will, and counts. The same on
    every process and every start.

    Args:
        ways: what the number of rows must be a multiple of: data-parallel ways times micro-batches.

    Raises:
        UserError: there is neither a number of rows nor of samples, or it does not divide.
    """
    mixture = mix(sources, text, tokenizer, seed=seed)
    lengths, images = table(read(mixture.samples, min(MEASURED, mixture.total or MEASURED)))
    return plan_rows(lengths, images, rows, seed=seed, ways=ways, total=mixture.total)


def plan_rows(lengths: Int[np.ndarray, "n"], images: Int[np.ndarray, "n"], rows: RowConfig, *, seed: int,
              ways: int = 1, total: int | None = None) -> Plan:
    """`plan` for samples already measured: their lengths and numbers of images."""
    if not rows.batch_size and not rows.samples:
        raise UserError("rows.batch_size and rows.samples are both 0; set one of them")
    if rows.batch_size % ways:
        raise UserError(f"rows.batch_size={rows.batch_size} does not divide over {ways} devices and micro-batches")
    # Buckets hold one sample per row like plain rows do; how many rows a batch has shapes only their density.
    per_row = 1.0
    if rows.layout == "pack":
        per_row = pack_statistics(lengths, images, rows, seed)[0]
    batch_size = rows.batch_size or rows_for(rows.samples, per_row, ways)
    density = pack_statistics(lengths, images, dataclasses.replace(rows, batch_size=batch_size, samples=0), seed)[1]
    return Plan(batch_size, per_row, density, len(lengths), total)


def rows_for(samples: int, samples_per_row: float, ways: int = 1) -> int:
    """The multiple of `ways` nearest to `samples / samples_per_row`, at least one per way."""
    return max(1, round(samples / samples_per_row / ways)) * ways


def read(samples: grain.MapDataset, count: int) -> list[Sample]:
    """The first `count` samples, in order; without pictures that are in files of their own.

    Raises:
        UserError: nearly everything is dropped.
    """
    result: list[Sample] = []
    reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    for drawn, element in enumerate(samples.to_iter_dataset(reading)):
        if isinstance(element, Sample):
            result.append(dataclasses.replace(element, images=tuple(
                dataclasses.replace(image, encoded=b"") for image in element.images)))
        elif drawn > 100 * count:
            raise UserError(f"only {len(result)} of {drawn} samples can be used, the last was dropped because: "
                            f"{element.reason} ({element.detail}); look at the stage's sources")
        if len(result) == count:
            break
    return result


def table(samples: Sequence[Sample]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """(lengths, numbers of images)."""
    return (np.array([sample.length for sample in samples], int),
            np.array([len(sample.images) for sample in samples], int))


def pack_statistics(lengths: Int[np.ndarray, "n"], images: Int[np.ndarray, "n"], rows: RowConfig, seed: int = 0,
                    ) -> tuple[float, float]:
    """(samples per row, share of positions used) when `rows` takes these samples, window by window.

    The last window is left out unless it is full or the only one: its rows could not be completed.
    """
    arrange, window = dataclasses.replace(rows, batch_size=rows.batch_size or 1, samples=0).arrangement()
    used = places = count = number = 0
    for start in range(0, max(len(lengths) - window, 0) + 1, window):
        part = slice(start, start + window)
        made = arrange(lengths[part].tolist(), images[part].tolist(), np.random.default_rng((seed, start)))
        used += int(lengths[part].sum())
        places += sum(length for length, _ in made)
        count, number = count + len(lengths[part]), number + len(made)
    return count / max(number, 1), used / max(places, 1)


def padded_density(lengths: Int[np.ndarray, "n"], images: Int[np.ndarray, "n"], *, grouped: bool,
                   batch: int = _LLAVA_BATCH, devices: int = _LLAVA_DEVICES) -> float:
    """Share of positions used when every device pads its batch to its longest sample, as LLaVA does.

    Args:
        grouped: every step takes samples with images or texts alone, sorted by length before they are dealt out, so
            that a device has neighbours in length. That is kinder than LLaVA's stage 2, which deals a sorted step out
            so that the devices' sums are even. Otherwise in the order of arrival.
    """
    kinds = [np.flatnonzero(images > 0), np.flatnonzero(images == 0)] if grouped else [np.arange(len(lengths))]
    used = places = 0
    for members in kinds:
        for start in range(0, len(members), batch * devices):
            step = lengths[members[start:start + batch * devices]]
            if grouped:
                step = np.sort(step)[::-1]
            for first in range(0, len(step), batch):
                device = step[first:first + batch]
                used, places = used + int(device.sum()), places + len(device) * int(device.max())
    return used / max(places, 1)


# Parts of Mix665K: (share, has an image, median tokens of the turns, spread as the sigma of a log-normal). Shares
# follow the data sets that Mix665K is made of; tokens are typical of their conversations, not counted in the files.
_MIX665K = (
    (0.061, False, 900, 0.9),   # ShareGPT: text alone, long
    (0.087, True, 330, 0.5),    # LLaVA-Instruct, conversations
    (0.035, True, 150, 0.3),    # detailed descriptions
    (0.116, True, 200, 0.4),    # complex reasoning
    (0.125, True, 110, 0.45),   # VQAv2, many short turns
    (0.108, True, 120, 0.35),   # GQA
    (0.120, True, 130, 0.35),   # OCR-VQA
    (0.113, True, 80, 0.4),     # OKVQA, A-OKVQA
    (0.033, True, 60, 0.4),     # TextCaps
    (0.073, True, 230, 0.3),    # RefCOCO, boxes in numbers
    (0.129, True, 290, 0.4),    # Visual Genome
)


def like_mix665k(count: int, *, seed: int = 0, image_tokens: int = 576, frame: int = 45, longest: int = 2048,
                 ) -> tuple[Int[np.ndarray, "count"], Int[np.ndarray, "count"]]:
    """(lengths, numbers of images) of a made-up data set that is as uneven as Mix665K, for measuring layouts.

    Args:
        frame: tokens of the template and the system text.
        longest: longer samples are cut there.
    """
    rng = np.random.default_rng(seed)
    shares, pictured, medians, spreads = (np.array(column) for column in zip(*_MIX665K, strict=True))
    part = rng.choice(len(_MIX665K), count, p=shares / shares.sum())
    text = frame + medians[part] * np.exp(spreads[part] * rng.standard_normal(count))
    return np.minimum(image_tokens * pictured[part] + text, longest).astype(int), pictured[part].astype(int)
