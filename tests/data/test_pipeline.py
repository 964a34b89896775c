"""Batches: determinism, shares of processes, exact resume, packing, and what fills which image slot."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from spatialllm_jax.data import images, pipeline
from spatialllm_jax.data.batch import Batch
from spatialllm_jax.data.features import FeatureStore, build
from spatialllm_jax.data.samples import SourceConfig, TextConfig
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.errors import UserError

PATCHES = 4
TEXT = TextConfig("compact", 96, PATCHES)
ROWS = pipeline.RowConfig(batch_size=4, length=96, images=4, image_size=16, resize="stretch", window=64)


def sources(folder, **kwargs):
    return [SourceConfig("captions", folder, {"caption": 1.0}, weight=1.0, form="plain", **kwargs),
            SourceConfig("general", folder, {"colour": 1.0, "what": 1.0}, weight=3.0, questions=2, **kwargs)]


def stream(folder, tokenizer, rows=ROWS, seed=0, mixture=None, text=TEXT, **kwargs):
    return iter(pipeline.build(mixture or sources(folder), text, rows, tokenizer, seed=seed, **kwargs))


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def test_same_seed_same_batches(tiny_dataset, tiny_tokenizer):
    first = take(stream(tiny_dataset, tiny_tokenizer), 6)
    assert all(map(same, first, take(stream(tiny_dataset, tiny_tokenizer, threads=1), 6)))
    other = take(stream(tiny_dataset, tiny_tokenizer, seed=1), 6)
    assert not any(map(same, first, other))
    assert not any(same(a, b) for a, b in itertools.combinations(first, 2))


def test_resume_from_iterator_state(tiny_dataset, tiny_tokenizer):
    running = stream(tiny_dataset, tiny_tokenizer)
    take(running, 3)
    state = running.get_state()
    expected = take(running, 5)
    fresh = stream(tiny_dataset, tiny_tokenizer)
    take(fresh, 1)
    fresh.set_state(state)
    assert all(map(same, expected, take(fresh, 5)))


def test_shapes_and_types(tiny_dataset, tiny_tokenizer):
    batch = next(stream(tiny_dataset, tiny_tokenizer))
    for name in ("tokens", "targets", "positions", "segment_ids", "branch_ids", "source_ids", "image_index"):
        assert batch[name].shape == (4, 96) and np.issubdtype(batch[name].dtype, np.integer), name
    assert batch["loss_weights"].shape == (4, 96)
    assert batch["images"].shape == (4, 4, 16, 16, 3) and batch["images"].dtype == np.uint8
    assert batch["image_mask"].shape == (4, 4) and batch["image_mask"].dtype == bool
    assert batch.pop(pipeline.NAMES).shape == (4,)
    assert Batch(**batch).shape == (4, 96)


def test_packing_keeps_samples_apart_and_images_in_their_slots(tiny_dataset, tiny_tokenizer):
    numbers = {tuple(images.load(r.image, 16, resize="stretch")[0, 0].tolist()): r for r in open_split(
        tiny_dataset, "train")}
    assert len(numbers) == 16                                    # every picture has a colour of its own
    packed = 0
    for batch in take(stream(tiny_dataset, tiny_tokenizer), 8):
        for row in range(4):
            segments = batch["segment_ids"][row]
            count = segments.max()
            packed += count > 1
            assert (batch["image_mask"][row] == (np.arange(4) < count)).all()
            assert (batch["images"][row][count:] == 0).all()
            padding = segments == 0
            assert (batch["image_index"][row][padding] == -1).all() and not batch["loss_weights"][row][padding].any()
            for segment in range(1, count + 1):
                inside = np.flatnonzero(segments == segment)
                assert (np.diff(inside) == 1).all()
                assert batch["positions"][row][inside[0]] == 0
                index = batch["image_index"][row][inside]
                assert index[index >= 0].tolist() == list(range((segment - 1) * PATCHES, segment * PATCHES))
                # What is said must belong to the picture that the slot shows.
                pixel = tuple(batch["images"][row][segment - 1][0, 0].tolist())
                record = numbers[pixel]
                weights, targets = batch["loss_weights"][row][inside], batch["targets"][row][inside]
                assert weights[-1] == 0                          # nothing is predicted across the boundary
                assert weights.sum() > 0
                said = tiny_tokenizer.decode(targets[weights > 0].tolist())
                colour = record.questions[2].answer
                others = {"red", "green", "blue"} - {colour}
                assert not any(other in said for other in others), (said, colour)
                source = set(batch["source_ids"][row][inside].tolist())
                assert source == ({0} if "\n" in tiny_tokenizer.backend.decode(targets[weights > 0].tolist()) else {1})
                # Branches restart at the end of the trunk.
                branches = batch["branch_ids"][row][inside]
                trunk = (branches == 0).sum()
                for branch in range(1, branches.max() + 1):
                    assert batch["positions"][row][inside][branches == branch][0] == trunk
    assert packed > 16


def test_no_packing_is_one_sample_per_row(tiny_dataset, tiny_tokenizer):
    rows = pipeline.RowConfig(4, 96, 1, 16, packing=False, resize="stretch")
    for batch in take(stream(tiny_dataset, tiny_tokenizer, rows), 4):
        assert (batch["segment_ids"].max(axis=1) == 1).all() and batch["image_mask"].all()


def test_mixture_follows_the_weights(tiny_dataset, tiny_tokenizer):
    rows = pipeline.RowConfig(8, 96, 1, 16, packing=False, resize="stretch")
    batches = take(stream(tiny_dataset, tiny_tokenizer, rows), 25)
    found = np.concatenate([batch["source_ids"][:, 0] for batch in batches])
    assert found.mean() == pytest.approx(0.75, abs=0.03)


def test_processes_share_the_work(tiny_dataset, tiny_tokenizer):
    rows = pipeline.RowConfig(4, 96, 1, 16, packing=False, resize="stretch")

    def rows_of(batches):
        return [tuple(batch[name][k].tobytes() for name in ("tokens", "images")) for batch in batches
                for k in range(len(batch["tokens"]))]

    whole = rows_of(take(stream(tiny_dataset, tiny_tokenizer, rows), 16))
    parts = [rows_of(take(stream(tiny_dataset, tiny_tokenizer, rows, share=(index, 2)), 16))
             for index in range(2)]
    assert [len(part) for part in parts] == [32, 32]
    # Process 0 has the first half of every batch of the one order, process 1 the second.
    for start in range(0, 64, 4):
        assert whole[start:start + 4] == parts[0][start // 2:start // 2 + 2] + parts[1][start // 2:start // 2 + 2]


def test_epochs_show_every_picture_equally_often_in_another_order_each(tiny_dataset, tiny_tokenizer):
    rows = pipeline.RowConfig(16, 96, 1, 16, packing=False, resize="stretch")
    mixture = [SourceConfig("captions", tiny_dataset, {"caption": 1.0}, form="plain")]
    seen = [tuple(pixel) for batch in take(stream(tiny_dataset, tiny_tokenizer, rows, mixture=mixture), 6)
            for pixel in batch["images"][:, 0, 0, 0].tolist()]
    windows = [seen[start:start + 32] for start in (0, 32, 64)]      # two epochs of 16
    for window in windows:
        assert set(collections.Counter(window).values()) == {2} and len(set(window)) == 16
    assert windows[0] != windows[1] != windows[2]


def test_samples_without_a_supervised_token_are_dropped(tiny_dataset, tiny_tokenizer):
    longest = max(len(tiny_tokenizer.encode(q.text.rstrip("?"))) + len(tiny_tokenizer.encode(q.answer)) + 1
                  for r in open_split(tiny_dataset, "train") for q in r.questions if q.type == "what")
    text = TextConfig("compact", 1 + PATCHES + longest - 1, PATCHES)       # the longest question never fits
    mixture = [SourceConfig("general", tiny_dataset, {"what": 1.0}, form="dialogue")]
    asked = set()
    rows = dataclasses.replace(ROWS, max_unsupervised=1.0)
    for batch in take(stream(tiny_dataset, tiny_tokenizer, rows, mixture=mixture, text=text), 6):
        for row in range(4):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                inside = batch["segment_ids"][row] == segment
                assert batch["loss_weights"][row][inside].sum() > 0
                asked.add(tiny_tokenizer.decode(batch["tokens"][row][inside].tolist()))
    assert len(asked) == 1 and "What is this" in asked.pop()


def test_marks_are_drawn(tiny_dataset, tiny_tokenizer):
    rows = pipeline.RowConfig(4, 96, 1, 64, packing=False, resize="stretch")
    marked = [SourceConfig("marks", tiny_dataset, {"higher": 1.0})]
    plain = [SourceConfig("plain", tiny_dataset, {"colour": 1.0})]
    with_marks = next(stream(tiny_dataset, tiny_tokenizer, rows, mixture=marked))["images"]
    without = next(stream(tiny_dataset, tiny_tokenizer, rows, mixture=plain))["images"]
    colours = [len(np.unique(image.reshape(-1, 3), axis=0)) for image in with_marks[:, 0]]
    assert min(colours) > 1 and all(len(np.unique(i.reshape(-1, 3), axis=0)) == 1 for i in without[:, 0])


@pytest.fixture(scope="module")
def store(tiny_dataset, tmp_path_factory):
    """Features that say which picture they are of: the record's number everywhere."""
    records = open_split(tiny_dataset, "train")
    return build(tmp_path_factory.mktemp("features") / "store", "key", records.image_ids(),
                 lambda index: np.full((2, 2, 3), index, np.uint8),
                 lambda pixels: np.broadcast_to(pixels[:, 0, 0, :1, None].astype(np.float32), (len(pixels), 9, 5)),
                 show_progress=False)


def test_stored_features_reach_their_slots(tiny_dataset, tiny_tokenizer, store):
    kept = {(tiny_dataset, "train"): FeatureStore(store.folder, store.key)}
    with_images = take(stream(tiny_dataset, tiny_tokenizer), 4)
    with_features = take(stream(tiny_dataset, tiny_tokenizer, features=kept), 4)
    number = {tuple(images.load(r.image, 16, resize="stretch")[0, 0].tolist()): index
              for index, r in enumerate(open_split(tiny_dataset, "train"))}
    for pixels, features in zip(with_images, with_features, strict=True):
        assert "images" not in features and features["features"].shape == (4, 4, 9, 5)
        assert same({k: v for k, v in pixels.items() if k != "images"},
                    {k: v for k, v in features.items() if k != "features"})
        for row, slot in zip(*np.nonzero(pixels["image_mask"]), strict=True):
            assert (features["features"][row, slot] == number[tuple(pixels["images"][row, slot, 0, 0].tolist())]).all()
        assert not features["features"][~pixels["image_mask"]].any()


def test_user_mistakes(tiny_dataset, tiny_tokenizer, store):
    with pytest.raises(UserError, match=r"batch size 4.*3 processes"):
        stream(tiny_dataset, tiny_tokenizer, share=(0, 3))
    with pytest.raises(UserError, match="4 tokens of an image"):
        stream(tiny_dataset, tiny_tokenizer, pipeline.RowConfig(4, 4, 1, 16))
    with pytest.raises(UserError, match="no split 'validation'"):
        stream(tiny_dataset, tiny_tokenizer, mixture=sources(tiny_dataset, split="validation"))
    with pytest.raises(UserError, match="does not exist"):
        stream("/nowhere/at/all", tiny_tokenizer)
    marked = [SourceConfig("marks", tiny_dataset, {"higher": 1.0})]
    with pytest.raises(UserError, match="drawn marks"):
        next(stream(tiny_dataset, tiny_tokenizer, mixture=marked,
                    features={(tiny_dataset, "train"): store}))
