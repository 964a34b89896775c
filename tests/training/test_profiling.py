"""`--profile` writes a trace that holds the steps it says, and no others."""

import gzip
import json

import jax
import pytest

from launch import train
from spatialllm_jax.training.profiling import StepTrace
from tests.training.nano import CONFIG, tree


def events(folder):
    file, = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    return json.loads(gzip.open(file).read())["traceEvents"]


@pytest.mark.slow
def test_train_writes_a_trace(tiny_dataset, tmp_path, caplog):
    config = tmp_path / "nano.py"
    config.write_text(CONFIG.format(config=tree(tiny_dataset, tmp_path, steps=6, save_every=6)))
    train.main([f"--config={config}", "--workdir", str(tmp_path / "run"), "--quiet", "--profile"])
    found = events(tmp_path / "run" / "profile")
    steps = [event["args"]["step_num"] for event in found if event.get("name") == "train"]
    assert sorted(map(int, steps)) == [3, 4, 5]
    assert sum(event.get("name") == "next batch" for event in found) == 3
    assert any("jit_step" in str(event.get("name")) or "PjitFunction(step)" in str(event.get("name"))
               for event in found), "the step's program"
    assert list((tmp_path / "run" / "profile").glob("plugins/profile/*/*.xplane.pb")), "TensorBoard's file"


def test_a_stage_that_is_too_short_says_so(tmp_path, caplog):
    profile = StepTrace(str(tmp_path / "trace"), skip=2, steps=3)
    with profile.step(1):
        pass
    profile.done(())
    profile.close()
    assert not (tmp_path / "trace").exists() and "ended after 1 steps" in caplog.text
    # The next stage ends within its trace, which is written all the same.
    for number in range(1, 5):
        with profile.step(number):
            value = jax.numpy.ones(3) + number
        profile.done(value)
    profile.close()
    assert [int(event["args"]["step_num"]) for event in events(tmp_path / "trace")
            if event.get("name") == "train"] == [3, 4]
    assert profile.folder == "", "one trace per run"


@pytest.mark.parametrize("folder", [""])
def test_without_a_folder_nothing_happens(folder):
    profile = StepTrace(folder)
    with profile.step(1):
        profile.done(1)
    profile.close()
