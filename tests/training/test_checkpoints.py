"""Which checkpoints stay, and what is found out before the first step."""

import dataclasses
import shutil
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spatialllm_jax.errors import UserError
from spatialllm_jax.training.checkpoints import Checkpoints, check_room, saved_bytes
from spatialllm_jax.training.metrics import MetricsLog, Trackers, read_lines
from spatialllm_jax.training.step import init_state


def stream():
    """A data iterator that counts."""
    return iter(grain.MapDataset.source(range(100)).to_iter_dataset())


@pytest.fixture
def state():
    trainable = {"connector/linear_0/kernel": jnp.arange(12.0).reshape(3, 4)}
    return init_state(trainable, {"llm/embedding": jnp.ones((5, 2))}, optax.adam(1e-3), jax.random.key(3))


def at_step(state, step):
    moved = {path: leaf + step for path, leaf in state.trainable.items()}
    return dataclasses.replace(state, step=jnp.int32(step), trainable=moved)


def steps_kept(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_last_and_best_stay(tmp_path, state):
    keeper = Checkpoints(tmp_path, 1, keep_last=2, keep_best=1)
    for step, loss in enumerate((3.0, 0.5, 2.0, 1.0, 1.5), start=1):
        assert keeper.maybe_save(step, at_step(state, step), stream(), loss)
    keeper.close()
    assert steps_kept(tmp_path) == [2, 4, 5]
    again = Checkpoints(tmp_path, 1, keep_last=2, keep_best=1)
    assert (again.latest, again.best) == (5, 2)
    best = again.restore(2, state)
    assert int(best.step) == 2
    np.testing.assert_array_equal(best.trainable["connector/linear_0/kernel"], np.arange(12.0).reshape(3, 4) + 2)
    assert jax.random.key_data(best.rng).tolist() == jax.random.key_data(state.rng).tolist()
    again.close()


def test_a_save_in_progress_is_not_a_checkpoint(tmp_path, state):
    """What a kill leaves of an unfinished save is passed over, and swept away."""
    keeper, data = Checkpoints(tmp_path, 1), stream()
    assert [next(data) for _ in range(3)] == [0, 1, 2]
    keeper.maybe_save(1, at_step(state, 1), data)
    keeper.close()
    torn = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", torn)
    (torn / "_CHECKPOINT_METADATA").unlink()
    again = Checkpoints(tmp_path, 1)
    assert again.latest == 1
    data = stream()
    assert int(again.restore(1, state, data).step) == 1 and next(data) == 3
    again.close()


def test_room_is_checked_first(tmp_path, state, monkeypatch):
    check_room(tmp_path / "stage", state, 2, 88)
    assert list((tmp_path / "stage").iterdir()) == []
    need = 3 * saved_bytes(state) + 88
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=need - 1))
    with pytest.raises(UserError, match=r"3 checkpoints and the model take .* lower keep_last"):
        check_room(tmp_path / "stage", state, 2, 88)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=need))
    check_room(tmp_path / "stage", state, 2, 88)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*choose another --workdir"):
        check_room(tmp_path / "file" / "stage", state, 2, 88)


def test_trackers(tmp_path, monkeypatch):
    """A missing package is told before any work; TensorBoard's files hold what metrics.jsonl holds."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        Trackers(wandb="project").check()
    Trackers().check()
    pytest.importorskip("tensorboardX", reason="TensorBoard files need tensorboardX")
    log = MetricsLog(tmp_path, 0, trackers=Trackers(tensorboard=True))
    log.write({"step": 1, "loss": 0.25})
    log.close()
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.25}]
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes()


def test_only_one_process_writes(tmp_path):
    log = MetricsLog(tmp_path, 0, enabled=False)
    log.write({"step": 1})
    log.close()
    assert list(tmp_path.iterdir()) == []
