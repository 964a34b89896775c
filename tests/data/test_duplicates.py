"""Fingerprints of pictures and finding near ones again."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from spatialllm_jax.data.duplicates import NearIndex, fingerprint, fingerprint_line, read_fingerprints
from spatialllm_jax.errors import UserError


def picture(seed, size=(320, 240)):
    """Smooth random blobs, as unlike noise as photographs are."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(a, b):
    return (fingerprint(a) ^ fingerprint(b)).bit_count()


@pytest.mark.parametrize("seed", range(8))
def test_copies_are_near_and_others_far(seed):
    original = picture(seed)
    copies = [encoded(original, "PNG"), encoded(original, quality=40), encoded(original.resize((200, 150))),
              encoded(ImageEnhance.Brightness(original).enhance(0.9)), encoded(original.resize((640, 480)))]
    assert max(distance(encoded(original), copy) for copy in copies) <= 4
    assert min(distance(encoded(original), encoded(picture(seed + 100 + k))) for k in range(5)) > 12


def test_index_agrees_with_comparing_all():
    rng = np.random.default_rng(0)
    known = [int(v) for v in rng.integers(0, 2**63, 300)]
    for limit in (1, 4, 8):
        index = NearIndex(limit)
        for value in known:
            index.add(value, f"{value:x}")
        hits = 0
        for _ in range(400):
            value = known[int(rng.integers(300))]
            for bit in rng.choice(64, int(rng.integers(0, 11)), replace=False):
                value ^= 1 << int(bit)
            expected = any((value ^ k).bit_count() <= limit for k in known)
            found = index.find(value)
            assert (found is not None) == expected
            hits += expected
            if found is not None:
                assert (int(found, 16) ^ value).bit_count() <= limit
        assert 0 < hits < 400


def test_no_picture():
    with pytest.raises(UserError, match=r"image a\.jpg cannot be decoded"):
        fingerprint(b"no picture", "a.jpg")
    with pytest.raises(UserError, match="cannot be decoded"):
        fingerprint(encoded(picture(0), "PNG")[:200])


def test_files(tmp_path):
    lines = [fingerprint_line("test", "a", 5), fingerprint_line("train", "b", 2**64 - 1)]
    (tmp_path / "fingerprints.txt").write_text("".join(lines))
    assert read_fingerprints(tmp_path) == [("a", 5), ("b", 2**64 - 1)]
    with pytest.raises(UserError, match="--exclude takes datasets"):
        read_fingerprints(tmp_path / "none")
    (tmp_path / "fingerprints.txt").write_text("test\ta\n")
    with pytest.raises(UserError, match="is broken"):
        read_fingerprints(tmp_path)
