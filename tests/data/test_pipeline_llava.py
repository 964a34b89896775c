"""Batches of LLaVA files: texts among pictures, layouts, counts, broken samples, and what every process knows."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from spatialllm_jax.data import lengths, packing, pipeline
from spatialllm_jax.data.samples import SourceConfig
from spatialllm_jax.data.stream import Dropped, mix
from spatialllm_jax.errors import UserError
from tests.data.test_pipeline import PATCHES, ROWS, TEXT, same, stream, take


def llava(path, form="dialogue", **kwargs):
    return SourceConfig("mix", path, form=form, **kwargs)


def parts_of(batches, count=None):
    """The samples in some batches: (tokens, targets, ... of the sample's own, blue value of its picture or None)."""
    found = []
    for batch in batches:
        for row in range(len(batch["tokens"])):
            segments, slots = batch["segment_ids"][row], iter(range(batch["images"].shape[1]))
            for segment in range(1, segments.max() + 1):
                inside = segments == segment
                index = batch["image_index"][row][inside]
                picture = None
                if (index >= 0).any():
                    slot = next(slots)
                    assert index[index >= 0].tolist() == list(range(slot * PATCHES, (slot + 1) * PATCHES))
                    assert batch["image_mask"][row, slot]
                    picture = batch["images"][row, slot]
                    assert (picture == picture[0, 0]).all()
                    picture = tuple(picture[0, 0].tolist())
                found.append((*(batch[name][row][inside].tobytes() for name in (
                    "tokens", "targets", "loss_weights", "positions", "branch_ids", "source_ids")), picture))
            assert not batch["image_mask"][row][next(slots, len(batch["image_mask"][row])):].any()
    return found[:count]


def test_texts_alone_take_no_slot_and_pictures_take_theirs(llava_file, llava_entries, tiny_tokenizer):
    batches = take(stream("", tiny_tokenizer, dataclasses.replace(ROWS, window=30), mixture=[llava(llava_file)]), 4)
    mixed = 0
    for batch in batches:
        for row in range(4):
            segments = batch["segment_ids"][row]
            with_picture = [bool((batch["image_index"][row][segments == s] >= 0).any())
                            for s in range(1, segments.max() + 1)]
            assert batch["image_mask"][row].sum() == sum(with_picture)
            # A text before a picture in the row: segment and slot numbers part ways.
            mixed += False in with_picture and True in with_picture[with_picture.index(False):]
    assert mixed > 0
    blue = {entry["image"]: entry for entry in llava_entries if "image" in entry}
    for tokens, _, weights, *_, picture in parts_of(batches):
        tokens, weights = np.frombuffer(tokens, np.int32), np.frombuffer(weights, np.float32)
        said = tiny_tokenizer.decode(tokens[tokens > 0].tolist())
        if picture is None:
            assert "closer" in said and weights.sum() > 0
        else:
            turns = blue[f"walls/{picture[2]}.png"]["conversations"]
            assert all(turn["value"].rstrip("?.").removeprefix("<image>\n") in said for turn in turns)


def test_packed_samples_are_the_unpacked_ones(llava_file, tiny_tokenizer):
    """The first 30 samples, packed in one window, are the first 30 rows without packing, whole and unchanged."""
    rows = dataclasses.replace(ROWS, window=30, batch_size=1)
    plain = dataclasses.replace(rows, packing=False, images=1)
    alone = parts_of(take(stream("", tiny_tokenizer, plain, mixture=[llava(llava_file)]), 30))
    running, packed = stream("", tiny_tokenizer, rows, mixture=[llava(llava_file)]), []
    while len(packed) < 30:
        packed += parts_of([next(running)])
    assert len(alone) == 30 and sorted(map(str, packed)) == sorted(map(str, alone)) and packed != alone
    assert len({str(sample) for sample in alone}) > 25


LAYOUTS = {"pack": dataclasses.replace(ROWS, window=20), "none": dataclasses.replace(ROWS, packing="none", images=1),
           "buckets": dataclasses.replace(ROWS, packing="buckets", buckets=(20, 36, 96), images=1, window=24)}


@pytest.mark.parametrize("layout", ["none", "pack", "buckets"])
def test_another_number_of_processes_takes_over(llava_file, tiny_tokenizer, layout):
    """A state of one process is a state of two, and the other way round: the same batches follow."""
    def running(index, count):
        return stream("", tiny_tokenizer, LAYOUTS[layout], mixture=[llava(llava_file)], share=(index, count))

    alone = running(0, 1)
    take(alone, 5)
    pair = [running(index, 2) for index in range(2)]
    for half in pair:
        half.set_state(json.loads(json.dumps(alone.get_state())))
    for batch in take(alone, 9):
        halves = [next(half) for half in pair]
        for name in batch:
            assert np.array_equal(np.concatenate([half[name] for half in halves]), batch[name]), name
    back = running(0, 1)
    back.set_state(pair[1].get_state())
    for batch, other in zip(take(back, 4), take(alone, 4), strict=True):
        assert all(np.array_equal(batch[name], other[name]) for name in batch)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("taken", [0, 1, 4, 7])
def test_resume_is_exact_in_every_layout_and_mixture(tiny_dataset, llava_file, tiny_tokenizer, layout, taken):
    mixture = [llava(llava_file, count=-1), SourceConfig("general", tiny_dataset, {"what": 1.0}, count=20, questions=2)]

    def fresh(threads=2):
        return stream("", tiny_tokenizer, LAYOUTS[layout], mixture=mixture, threads=threads)

    running = fresh()
    take(running, taken)
    state = json.loads(json.dumps(running.get_state()))     # as a checkpoint keeps it
    expected = take(running, 6)
    other = fresh(threads=1)
    take(other, 2)
    other.set_state(state)
    assert pipeline.counts(other) == pipeline.counts(iter_at(fresh(), taken))
    assert all(map(same, expected, take(other, 6)))
    assert pipeline.counts(other) == pipeline.counts(iter_at(fresh(), taken + 6))


def iter_at(iterator, taken):
    take(iterator, taken)
    return iterator


def test_a_bucket_holds_one_length_and_processes_agree_on_it(llava_file, tiny_tokenizer):
    rows, mixture = LAYOUTS["buckets"], [llava(llava_file)]
    whole = take(stream("", tiny_tokenizer, rows, mixture=mixture), 12)
    shapes = [batch["tokens"].shape for batch in whole]
    assert {length for _, length in shapes} == {20, 36, 96} and {count for count, _ in shapes} == {4}
    for batch in whole:
        longest = (batch["segment_ids"] > 0).sum(axis=1).max()
        assert batch["tokens"].shape[1] == min(length for length in rows.buckets if length >= longest)
        assert (batch["segment_ids"].max(axis=1) == 1).all()
    parts = [take(stream("", tiny_tokenizer, rows, mixture=mixture, share=(index, 2)), 12)
             for index in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        for index, half in enumerate(halves):
            assert all(np.array_equal(half[name], batch[name][2 * index:2 * index + 2]) for name in batch)


def test_counts_give_natural_shares_without_repetition_in_a_pass(tiny_dataset, llava_file, tiny_tokenizer):
    rows = dataclasses.replace(ROWS, packing=False, images=1, batch_size=10)
    mixture = [llava(llava_file, count=-1), SourceConfig("captions", tiny_dataset, {"colour": 1.0}, count=10)]
    batches = take(stream("", tiny_tokenizer, rows, mixture=mixture), 8)
    passes = [np.concatenate([batch["source_ids"][:, 0] for batch in batches[start:start + 4]]) for start in (0, 4)]
    assert [np.bincount(found).tolist() for found in passes] == [[30, 10], [30, 10]]
    firsts = [parts_of(batches[start:start + 4]) for start in (0, 4)]
    for found in firsts:        # every picture of the file once per pass
        assert collections.Counter(part[-1][2] for part in found if part[-1] and part[-1][0] == 90) == \
            collections.Counter(range(24))
    colours = [part[-1] for part in firsts[0] if part[-1] and part[-1][0] != 90]
    assert len(set(colours)) == len(colours) == 10
    assert firsts[0] != firsts[1]
    with pytest.raises(UserError, match="source 'mix' has a count but source 'captions' goes by weight"):
        stream("", tiny_tokenizer, rows, mixture=[mixture[0], dataclasses.replace(mixture[1], count=None)])


@pytest.fixture
def broken_file(tmp_path, llava_entries, write_llava_folder):
    """The file with two pictures missing, one cut short, one no picture, and two malformed samples."""
    path = write_llava_folder(tmp_path / "broken", [*llava_entries, {"id": "no"}, {"conversations": []}])
    walls = tmp_path / "broken" / "walls"
    (walls / "3.png").unlink()
    (walls / "4.png").unlink()
    (walls / "5.png").write_bytes((walls / "5.png").read_bytes()[:40])
    (walls / "6.png").write_bytes(b"not a picture")
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_broken_samples_are_skipped_and_counted(broken_file, tiny_tokenizer, layout):
    rows = dataclasses.replace(LAYOUTS[layout], batch_size=1 if layout == "pack" else 2, window=30)
    running = stream("", tiny_tokenizer, rows, mixture=[llava(broken_file)])
    blues = []
    while sum(pipeline.counts(running).samples) < 26:
        blues += [part[-1][2] for part in parts_of([next(running)]) if part[-1]]
    found = pipeline.counts(running)
    assert not {3, 4, 5, 6} & set(blues)
    assert set(blues) == set(range(24)) - {3, 4, 5, 6}
    # One pass, but for what stands at its end (or, packed, in rows of its own that are still to come).
    assert found.samples == (26,) and found.last
    assert found.dropped["image cannot be read"] in (2, 3, 4) and found.dropped["malformed"] in (0, 1, 2)
    again = stream("", tiny_tokenizer, rows, mixture=[llava(broken_file)], prefetch=0)
    again.set_state(running.get_state())
    assert pipeline.counts(again) == found


def test_counts_do_not_run_ahead_of_the_batches(broken_file, tiny_tokenizer):
    rows = dataclasses.replace(LAYOUTS["none"], batch_size=2)
    ahead, plain = (stream("", tiny_tokenizer, rows, mixture=[llava(broken_file)], prefetch=n) for n in (6, 0))
    assert pipeline.counts(ahead) == pipeline.counts(plain) and sum(pipeline.counts(plain).samples) == 0
    for number in range(1, 30):
        next(ahead), next(plain)
        assert pipeline.counts(ahead) == pipeline.counts(plain)
        assert sum(pipeline.counts(plain).samples) == 2 * number
    found, expected, good = pipeline.counts(plain), collections.Counter(), 0
    elements = iter(mix([llava(broken_file)], TEXT, tiny_tokenizer, seed=0).samples)
    while good < 58:
        element = next(elements)
        if isinstance(element, Dropped):
            expected[element.reason] += 1
        elif any(image.image_id == f"walls/{n}.png" for image in element.images for n in (3, 4, 5, 6)):
            expected["image cannot be read"] += 1
        else:
            good += 1
    assert {reason: number for reason, number in found.dropped.items() if number} == expected
    assert expected["malformed"] >= 4 and expected["image cannot be read"] >= 8         # more than two passes
    used = sum((batch["segment_ids"] > 0).sum() for batch in take(
        stream("", tiny_tokenizer, rows, mixture=[llava(broken_file)]), 29))
    assert found.positions == (used, 29 * 2 * 96)


def test_a_state_stays_what_it_was(broken_file, tiny_tokenizer):
    built = pipeline.build([llava(broken_file)], TEXT, LAYOUTS["none"], tiny_tokenizer, seed=0)
    running = iter(built.parents[0])        # what prefetches copies states, which would hide one that changes
    next(running)
    state = running.get_state()
    before = json.dumps(state)
    take(running, 12)
    assert json.dumps(state) == before != json.dumps(running.get_state())


def test_every_process_knows_all_counts_but_the_pictures_of_others(broken_file, tiny_tokenizer):
    rows = dataclasses.replace(LAYOUTS["buckets"], window=28)
    found = []
    for index, count in ((0, 1), (0, 2), (1, 2)):
        running = stream("", tiny_tokenizer, rows, mixture=[llava(broken_file)], share=(index, count))
        take(running, 21)                                      # three windows
        found.append(pipeline.counts(running))
    broken = "image cannot be read"
    for reason, number in found[0].dropped.items():
        if reason != broken:
            assert number == found[1].dropped[reason] == found[2].dropped[reason], reason
    assert found[0].dropped["malformed"] >= 5 and found[0].dropped[broken] >= 10
    unread = [counts.dropped[broken] for counts in found]
    assert unread[0] == unread[1] + unread[2] and min(unread) > 0
    # Samples that another process could not read count as seen here.
    assert [sum(counts.samples) - sum(found[0].samples) for counts in found[1:]] == [unread[2], unread[1]]


def test_too_many_broken_samples_stop_the_run_with_the_last_one_named(broken_file, tiny_tokenizer):
    rows = dataclasses.replace(LAYOUTS["none"], max_broken=3)
    running = stream("", tiny_tokenizer, rows, mixture=[llava(broken_file)])
    with pytest.raises(UserError, match=r"samples could not be read.*rows\.max_broken=3.*(\.png|sample 3[01] of)"):
        take(running, 40)
    unlimited = dataclasses.replace(rows, max_broken=10_000)
    assert len(take(stream("", tiny_tokenizer, unlimited, mixture=[llava(broken_file)]), 40)) == 40


def test_answers_cut_away_are_dropped_and_counted(tmp_path, tiny_tokenizer, monkeypatch):
    """Of two samples one has an answer that never fits; of its two turns another loses the second."""
    entries = [{"conversations": [{"from": "human", "value": "What is this?"}, {"from": "gpt", "value": said}, *more]}
               for said, more in (("a wall", []), ("a wall " * 60, []), ("a cat", [
                   {"from": "human", "value": "What is this?"}, {"from": "gpt", "value": "a dog " * 60}]))]
    path = tmp_path / "long.json"
    path.write_text(json.dumps(entries))
    rows = dataclasses.replace(LAYOUTS["none"], batch_size=2, max_unsupervised=0.5)
    running = stream("", tiny_tokenizer, rows, mixture=[llava(str(path))])
    said = {tiny_tokenizer.decode(batch["tokens"][row].tolist()) for batch in take(running, 30) for row in range(2)}
    assert len(said) == 2 and not any("dog" in text for text in said)
    assert pipeline.counts(running).dropped["no supervised token left"] == pytest.approx(30, abs=1)
    monkeypatch.setattr(pipeline, "_JUDGED_FROM", 50)
    with pytest.raises(UserError, match=r"have no supervised token left.*max_unsupervised=0\.1.*96 positions"):
        take(stream("", tiny_tokenizer, dataclasses.replace(rows, max_unsupervised=0.1), mixture=[llava(str(path))]),
             40)


def test_a_stage_in_which_nothing_can_be_used_ends(tiny_dataset, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(packing, "_HOPELESS", 100)
    mixture = [SourceConfig("none", tiny_dataset, {"theta": 1.0})]
    with pytest.raises(UserError, match=r"all dropped.*no question of the wanted types"):
        next(stream("", tiny_tokenizer, mixture=mixture))


def test_rows_per_step_keep_the_number_of_samples(llava_file, tiny_dataset, tiny_tokenizer):
    mixture = [llava(llava_file, count=-1), SourceConfig("captions", tiny_dataset, {"colour": 1.0}, count=30)]
    rows = dataclasses.replace(ROWS, batch_size=0, samples=12, window=60)
    plan = lengths.plan(mixture, TEXT, rows, tiny_tokenizer, seed=0)
    assert plan.total == 60 and plan.steps == round(60 / plan.samples_per_step)
    assert abs(plan.samples_per_step - 12) <= plan.samples_per_row / 2
    sized = dataclasses.replace(rows, batch_size=plan.batch_size, samples=0)
    running = stream("", tiny_tokenizer, sized, mixture=mixture)
    take(running, 50)
    assert sum(pipeline.counts(running).samples) / 50 == pytest.approx(plan.samples_per_step, rel=0.05)
    assert pipeline.counts(running).density == pytest.approx(plan.density, rel=0.05)


def test_what_the_sources_of_a_llava_file_must_not_ask(tiny_dataset, llava_file):
    with pytest.raises(UserError, match="names no question types"):
        SourceConfig("a", tiny_dataset)
    with pytest.raises(UserError, match="sets images"):
        SourceConfig("a", tiny_dataset, {"what": 1.0}, images="elsewhere")
    with pytest.raises(UserError, match="count 0"):
        llava(llava_file, count=0)
