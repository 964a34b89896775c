"""Generation in lanes against the plain model, step by step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialllm_jax.data.chat import Encoded
from spatialllm_jax.inference import lanes, reading
from spatialllm_jax.inference.board import Board, Request
from spatialllm_jax.inference.schedule import divided, fitting, generate
from spatialllm_jax.models.presets import preset
from spatialllm_jax.models.spatialllm import SpatialLLM
from spatialllm_jax.parallel.mesh import make_mesh
from spatialllm_jax.parallel.rules import param_shardings
from tests.conftest import random_params

CONFIG = preset("nano")
MODEL = SpatialLLM(CONFIG)
PATCHES = CONFIG.connector.num_tokens
NEW, LENGTHS, LONGEST = 10, (1, 5, 9, 16), 16


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@dataclasses.dataclass
class Prompts:
    tokens: np.ndarray
    lengths: np.ndarray
    image_index: np.ndarray
    visual: np.ndarray

    def pick(self, rows):
        return Prompts(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def padded(self, width):
        """The same prompts in wider arrays, with rubbish in the padding."""
        extra = ((0, 0), (0, width - self.tokens.shape[1]))
        tokens = np.pad(self.tokens, extra, constant_values=7)
        for row, length in enumerate(self.lengths):
            tokens[row, length:] = 7
        return dataclasses.replace(self, tokens=tokens, image_index=np.pad(
            self.image_index, extra, constant_values=-1))


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(1)
    tokens = np.zeros((len(LENGTHS), LONGEST), np.int32)
    index = np.full_like(tokens, -1)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = rng.integers(1, 64, length)
        if length > PATCHES:
            index[row, 1:1 + PATCHES] = np.arange(PATCHES)
    visual = rng.normal(size=(len(LENGTHS), PATCHES, CONFIG.llm.width)).astype(np.float32)
    return Prompts(tokens, np.array(LENGTHS, np.int32), index, visual)


def run(params, p, *, new=NEW, stop=(), **options):
    stops = (*stop, *[-1] * (4 - len(stop)))        # of one size, for one set of programs
    return generate(MODEL, params, p.tokens, p.lengths, p.image_index, p.visual, max_new_tokens=new, stop=stops,
                    **options)


def _plain(module, tokens, visual, index, segments):
    from spatialllm_jax.models.attention import self_mask

    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = module.llm(module.embed(tokens, visual, index), positions, self_mask(segments))
    return module.logits(hidden)


@functools.partial(jax.jit)
def logits(params, tokens, visual, index, segments):
    return MODEL.apply({"params": params}, tokens, visual, index, segments, method=_plain)


def without_cache(params, p, row):
    """Greedy tokens by running the whole sequence anew for each of them."""
    width = LONGEST + NEW
    length = int(p.lengths[row])
    tokens = np.zeros((1, width), np.int32)
    tokens[0, :length] = p.tokens[row, :length]
    index = np.full((1, width), -1, np.int32)
    index[0, :length] = p.image_index[row, :length]
    out = []
    for at in range(length, length + NEW):
        segments = (np.arange(width) < at).astype(np.int32)[None]
        values = logits(params, tokens, p.visual[row:row + 1], index, segments)[0, at - 1]
        out.append(int(values.argmax()))
        tokens[0, at] = out[-1]
    return out


def test_equals_step_by_step_without_a_cache(params, prompts):
    found = run(params, prompts)
    expected = [without_cache(params, prompts, row) for row in range(len(LENGTHS))]
    assert found.tolist() == expected
    assert len({tuple(row) for row in expected}) == len(LENGTHS)      # the prompts differ, and so do the answers


def test_answers_do_not_depend_on_padding_order_or_batch(params, prompts):
    whole = run(params, prompts)
    assert (run(params, prompts.padded(24)) == whole).all()
    order = np.array([2, 0, 3, 1])
    assert (run(params, prompts.pick(order)) == whole[order]).all()
    alone = np.concatenate([run(params, prompts.pick(np.array([row]))) for row in range(len(LENGTHS))])
    assert (alone == whole).all()


def test_a_row_stops_and_the_others_go_on(params, prompts):
    whole = run(params, prompts)
    stop = int(whole[1, 4])
    found = run(params, prompts, stop=(stop,))
    for row in range(len(LENGTHS)):
        hits = np.flatnonzero(whole[row] == stop)
        end = hits[0] + 1 if len(hits) else NEW
        assert (found[row, :end] == whole[row, :end]).all() and (found[row, end:] == -1).all()
    assert (found[1] == -1).any() and (found != -1).all(axis=1).any()
    # All stopped at the first token: nothing else is made.
    first = tuple({int(token) for token in whole[:, 0]})
    assert (run(params, prompts, stop=first)[:, 1:] == -1).all()


def test_fewer_tokens_are_a_prefix(params, prompts):
    whole = run(params, prompts)
    assert (run(params, prompts, new=1, concurrent=256) == whole[:, :1]).all()


def test_pictures_matter(params, prompts):
    changed = dataclasses.replace(prompts, visual=-prompts.visual)
    same = (run(params, changed) == run(params, prompts)).all(axis=1)
    assert same.tolist() == [length <= PATCHES for length in LENGTHS]  # rows without a picture are as before


def test_sampling_follows_the_softmax(params, prompts):
    rows = np.full(4000, 2)
    many = prompts.pick(rows)
    drawn = run(params, many, new=1, concurrent=256, temperature=2.0)[:, 0]
    one = prompts.pick(np.array([2]))
    width = LONGEST
    segments = (np.arange(width) < LENGTHS[2]).astype(np.int32)[None]
    values = np.asarray(logits(params, one.tokens, one.visual, one.image_index, segments))[0, LENGTHS[2] - 1]
    expected = np.exp(values / 2.0 - (values / 2.0).max())
    expected /= expected.sum()
    counts = np.bincount(drawn, minlength=64) / len(drawn)
    error = 5 * np.sqrt(expected * (1 - expected) / len(drawn)) + 1e-3
    assert (np.abs(counts - expected) < error).all()
    few = prompts.pick(rows[:256])
    assert (run(params, few, new=1, concurrent=256, temperature=2.0)[:, 0] == drawn[:256]).all()
    assert (run(params, few, new=1, concurrent=256, temperature=2.0, seed=1)[:, 0] != drawn[:256]).any()


def board(params, rows, count, read=0, *, new=NEW, model=MODEL, stop=(), whole=False):
    shape = lanes.Shape(rows, count, 0, 80, new) if whole else lanes.Shape(rows, count, 64, 16, new, read)
    return Board(model, params, shape, np.array(stop, np.int32), lanes.empty(model, shape, PATCHES))


def encoded(tokens, index=None):
    zeros = np.zeros(len(tokens), np.int32)
    return Encoded(np.asarray(tokens, np.int32), zeros > 0, zeros, np.arange(len(tokens)),
                   zeros - 1 if index is None else index, ())


def questions(number, pictures=3, seed=3):
    """(requests, visual tokens): questions of 1 to 9 tokens on a few pictures, in no order."""
    rng = np.random.default_rng(seed)
    before = rng.integers(1, 64, PATCHES + 2).astype(np.int32)
    index = np.r_[-1, np.arange(PATCHES), -1].astype(np.int32)
    requests = []
    for place in range(number):
        after = rng.integers(1, 64, rng.integers(1, 10))
        requests.append(Request(int(rng.integers(pictures)), encoded(before, index), encoded(after),
                                int(rng.integers(1, NEW + 1)), number=place))
    return requests, rng.normal(size=(pictures, PATCHES, CONFIG.llm.width)).astype(np.float32)


def answers(board, requests, visual, seed=0):
    found = {}
    board.answer([dataclasses.replace(request, seed=seed) for request in requests],
                 lambda indices: visual[[requests[k].group for k in indices]], found.__setitem__)
    assert sorted(found) == list(range(len(requests)))
    return [found[k] for k in range(len(requests))]


def one_by_one(params, requests, visual):
    """Each request as a prompt of its own, without any cache."""
    found = []
    for request in requests:
        tokens, index = (np.zeros((1, LONGEST), np.int32) for _ in range(2))
        length = request.before.length + request.after.length
        tokens[0, :length] = np.r_[request.before.tokens, request.after.tokens]
        index[0] = -1
        index[0, :length] = np.r_[request.before.image_index, request.after.image_index]
        prompt = Prompts(tokens, np.array([length]), index, visual[request.group][None])
        found.append(without_cache(params, prompt, 0)[:request.limit])
    return found


@pytest.mark.parametrize(("rows", "count", "read"), [
    (2, 3, 0), (3, 16, 40),
    *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 1, 0), (1, 4, 0), (4, 1, 0)))])
def test_questions_on_shared_pictures_are_answered_as_if_alone(params, rows, count, read):
    """Whatever the lanes, although they are refilled while others go on, and read side by side."""
    requests, visual = questions(17)
    assert answers(board(params, rows, count, read), requests, visual) == one_by_one(params, requests, visual)


def test_questions_share_rows(params, monkeypatch):
    """Rows of 40 tokens take up several of 40 questions of 5 tokens in the mean, and none is lost."""
    asked, ask = [], lanes.ask

    def counted(model, params, shape, state, rows, tokens, offset, branch, index, visual, into, *args, **kwargs):
        asked.extend((into < shape.lanes).sum(axis=1)[rows < shape.rows].tolist())
        return ask(model, params, shape, state, rows, tokens, offset, branch, index, visual, into, *args, **kwargs)

    monkeypatch.setattr(lanes, "ask", counted)
    requests, visual = questions(40, pictures=1)
    answers(board(params, 3, 16, 40), requests, visual)
    assert sum(asked) == 40 and np.mean(asked) > 3


def test_prompts_that_share_nothing_are_read_whole(params, monkeypatch):
    """By programs that are full as long as others wait, and by no others."""
    asked, ask = [], lanes.ask

    def counted(model, params, shape, state, rows, *args, **kwargs):
        asked.append(int((rows < shape.rows).sum()))
        return ask(model, params, shape, state, rows, *args, **kwargs)

    monkeypatch.setattr(lanes, "ask", counted)
    monkeypatch.setattr(lanes, "begin", None)
    requests, visual = questions(41)
    held = board(params, 16, 1, whole=True)
    assert answers(held, requests, visual) == one_by_one(params, requests, visual)
    assert held.sizes.questions == (2,) and asked == [2] * 20 + [1]


def test_rotations_are_answered_as_if_alone(params):
    """Their question is read once for all four, also where some are the same to the last token."""
    requests, visual = questions(5, pictures=2, seed=6)
    tails = [np.array(tail, np.int32) for tail in ([3, 4], [4, 3], [4, 3], [])]
    turned = [dataclasses.replace(request, after=encoded(np.r_[request.after.tokens[:5], tail]))
              for request in requests for tail in tails]
    found = reading.families([one.after for one in turned[:8]])
    assert reading.read(found) < sum(one.after.length for one in turned[:8])
    expected = one_by_one(params, turned, visual)
    assert answers(board(params, 3, 16, 40), turned, visual) == expected
    assert len({tuple(answer) for answer in expected}) > 5      # rotations matter
    warm = [dataclasses.replace(one, temperature=1.5, number=k) for k, one in enumerate(turned)]
    assert answers(board(params, 3, 16, 40), warm, visual) == answers(board(params, 2, 3), warm, visual)


@pytest.mark.parametrize("per_picture, lengths, expected", [
    (1, [40, 20], lanes.Shape(16, 1, 0, 64, NEW)),
    # Two by two, in six rows of a call.
    (12, [40], lanes.Shape(1, 12, 16, 64, NEW, 80)),
    # A row of 280 for each of four pictures.
    (4, [40, 100], lanes.Shape(4, 4, 16, 128, NEW, 288)),
    # Sixteen of 30 in two calls, then eight in one.
    (24, [30], lanes.Shape(1, 16, 16, 32, NEW, 272))])
def test_lanes_that_fit(per_picture, lengths, expected):
    rng = np.random.default_rng(0)
    questions = [encoded(rng.integers(0, 9999, lengths[k % len(lengths)])) for k in range(48)]
    requests = [Request(k // per_picture, encoded(np.arange(9)), one, 1) for k, one in enumerate(questions)]
    shape = fitting(requests, 16, NEW)
    assert shape == expected
    assert fitting(requests[:7], 16, NEW, held=shape) is shape


def test_lanes_for_whole_prompts_are_kept_while_nothing_is_shared():
    def asked(per_picture, length=20):
        return [Request(k // per_picture, encoded(np.arange(300)), encoded(np.arange(length)), 1) for k in range(8)]

    whole = fitting(asked(1), 16, NEW)
    assert whole == lanes.Shape(16, 1, 0, 320, NEW)
    assert fitting(asked(1, 5), 16, NEW, held=whole) is whole
    assert fitting(asked(1, 30), 16, NEW, held=whole) == lanes.Shape(16, 1, 0, 352, NEW)
    shared = fitting(asked(4), 16, NEW, held=whole)
    assert shared.prefix == 304 and shared.lanes == 4
    assert fitting(asked(1), 16, NEW, held=shared) is shared


def test_lanes_are_used_again(params):
    """What earlier pictures and questions left in the cache is seen by nobody."""
    held = board(params, 2, 3)
    first, pictures = questions(9)
    second, others = questions(9, seed=4)
    expected = answers(held, second, others)
    answers(held, first, pictures)
    assert answers(held, second, others) == expected != answers(held, first, pictures)


def test_a_picture_is_begun_once_and_programs_are_few(params, monkeypatch):
    begun = []
    begin = lanes.begin

    def counted(model, params, shape, state, rows, *args):
        begun.extend(row for row in rows if row < shape.rows)
        return begin(model, params, shape, state, rows, *args)

    requests, visual = questions(40, pictures=5)
    programs = (lanes.begin, lanes.ask, lanes.advance)
    monkeypatch.setattr(lanes, "begin", counted)
    before = sum(program._cache_size() for program in programs)
    found = answers(board(params, 3, 16), requests, visual)
    assert found == one_by_one(params, requests, visual)
    assert len(begun) == 5 and sum(program._cache_size() for program in programs) == before + 3


def test_draws_are_the_requests_own(params):
    """The same whoever else is answered, and in whatever order."""
    requests, visual = questions(12)
    warm = [dataclasses.replace(request, temperature=1.5, limit=NEW) for request in requests]
    whole = answers(board(params, 2, 3), warm, visual)
    order = np.random.default_rng(0).permutation(12)[:7]
    part = answers(board(params, 1, 4, 24), [warm[k] for k in order], visual)
    assert part == [whole[k] for k in order]
    assert whole != answers(board(params, 2, 3), warm, visual, seed=1)
    mixed = [dataclasses.replace(r, temperature=0.0) if k % 2 else r for k, r in enumerate(warm)]
    cold = answers(board(params, 2, 3), [dataclasses.replace(r, temperature=0.0) for r in warm], visual)
    assert answers(board(params, 2, 3), mixed, visual) == [cold[k] if k % 2 else whole[k] for k in range(12)]


@pytest.mark.slow      # a mesh's answers, fast: tests/inference/test_inference_engine.py
@pytest.mark.parametrize("sizes", [{"data": 4, "tensor": 2}, {"data": 1, "fsdp": 8}])
def test_eight_devices_answer_as_one(params, sizes):
    requests, visual = questions(17)
    expected = one_by_one(params, requests, visual)
    mesh = make_mesh(**sizes)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(params, mesh))
        model = SpatialLLM(CONFIG.replace(unroll=2))     # a program of its own
        held = board(placed, 4, 2, 24, model=model)
        assert answers(held, requests, visual) == expected
        assert answers(board(placed, 16, 1, model=model, whole=True), requests, visual) == expected
        if sizes.get("tensor"):
            assert held.state.cache.k[0].addressable_shards[0].data.size * 8 == held.state.cache.k[0].size


def test_prompts_are_divided_behind_their_picture():
    def parts(index):
        zeros = np.zeros(len(index), np.int32)
        return [part.image_index.tolist() for part in
                divided(Encoded(zeros, zeros > 0, zeros, zeros, np.array(index, np.int32), ()))]

    assert parts([-1, 0, 1, -1, -1]) == [[-1, 0, 1], [-1, -1]]
    assert parts([-1, 0, 1]) == [[-1, 0], [1]]      # a caption's prompt ends in its picture
    assert parts([-1, -1]) == [[-1], [-1]]
    assert parts([-1]) == [[], [-1]]
