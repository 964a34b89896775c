"""Near-duplicate pictures by perceptual hash, so that none is in two splits."""

from __future__ import annotations

import io
import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from spatialllm_jax.errors import UserError

_BITS = 64
FILE = "fingerprints.txt"


def fingerprint(encoded: bytes, name: str = "") -> int:
    """The picture's 64-bit difference hash: whether each of 8 x 8 cells is brighter than its right neighbour.

    It survives scaling, recompression and small changes of brightness. JPEGs are decoded at an eighth of their size.

    Raises:
        UserError: when the bytes are no picture.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.draft("L", (72, 64))
            small = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = name or "without a name"
        raise UserError(f"image {name} cannot be decoded ({error}); replace or remove it") from error
    cells = np.asarray(small, np.int16)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


class NearIndex:
    """Fingerprints with an owner each, found again within a few differing bits.

    A fingerprint is cut into `distance + 1` bands; two that differ in at most `distance` bits agree in a band at
    least, so only those need to be compared.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        edges = np.linspace(0, _BITS, distance + 2).astype(int)
        self._bands = [(int(low), (1 << int(high - low)) - 1) for low, high in itertools.pairwise(edges)]
        self._tables: list[dict[int, list[tuple[int, str]]]] = [defaultdict(list) for _ in self._bands]

    def add(self, value: int, owner: str) -> None:
        """Remembers a fingerprint."""
        for (shift, mask), table in zip(self._bands, self._tables, strict=True):
            table[value >> shift & mask].append((value, owner))

    def find(self, value: int) -> str | None:
        """The owner of a fingerprint that differs in at most `distance` bits, or None."""
        for (shift, mask), table in zip(self._bands, self._tables, strict=True):
            for known, owner in table.get(value >> shift & mask, ()):
                if (known ^ value).bit_count() <= self._distance:
                    return owner
        return None


def fingerprint_line(split: str, image_id: str, value: int) -> str:
    """A line of the file `FILE` that stands beside a dataset, for later ones to keep clear of its pictures."""
    return f"{split}\t{image_id}\t{value:016x}\n"


def read_fingerprints(folder: Path) -> list[tuple[str, int]]:
    """(image id, fingerprint) of every picture of a dataset folder.

    Raises:
        UserError: when the folder holds none, or the file is broken.
    """
    path = folder / FILE
    try:
        rows = [line.rstrip("\n").split("\t") for line in path.read_text().splitlines()]
        return [(image_id, int(value, 16)) for _, image_id, value in rows]
    except FileNotFoundError:
        raise UserError(f"{folder} has no {FILE}; --exclude takes datasets that launch.generate wrote with "
                        "near_duplicates above 0") from None
    except ValueError as error:
        raise UserError(f"{path} is broken ({error}); write that dataset again") from error
