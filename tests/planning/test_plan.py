"""Whole steps compiled on fake CPU devices: what they hold, how large they are, what they compute."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import plan as command
from spatialllm_jax.data import tokenizer as tokenizers
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.flops import connector_flops, linear_parameters, vision_flops
from spatialllm_jax.planning import lowering, targets
from spatialllm_jax.training import loop, program, run
from tests.training.nano import CONFIG, tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Less work on machine code; the program that is read is the same."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def nano(tmp_path, mesh=None, model=None, **stage):
    config = tree("data/nowhere", tmp_path, **stage)
    config["mesh"] = mesh or {"data": 1, "fsdp": 8, "tensor": 1}
    config["model"] = {**config["model"], "unroll": 1, **(model or {})}
    return config


def job(config, rows=1):
    return lowering.job(config, targets.parse("cpu:8"), jax.devices(), rows=rows)


def held(tree, device):
    """Bytes of a tree of arrays that lie on one device."""
    return sum(shard.data.nbytes for leaf in map(plain, jax.tree.leaves(tree)) for shard in leaf.addressable_shards
               if shard.device == device)


def plain(leaf):
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


class Caught(Exception):
    pass


@pytest.mark.parametrize("mesh, changes", [
    ({"data": 1, "fsdp": 8, "tensor": 1}, {}),
    pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, {
        "quantize": "int8", "frozen_dtype": "bfloat16", "llm_lora": {"rank": 2, "alpha": 4.0},
        "trainable": "connector|llm/.*lora_", "accumulate": 2}, marks=pytest.mark.slow)])
def test_a_plan_holds_what_a_run_holds(tiny_dataset, tmp_path, monkeypatch, mesh, changes):
    """The state and the first batch of a run on 8 devices, caught as it begins: same shapes, types, shardings, and to
    the byte what the compiled step takes as arguments on a device."""
    config = nano(tmp_path, mesh, **changes)
    config["stages"]["tune"]["sources"]["hand"]["path"] = tiny_dataset
    caught = {}

    def catch(stage, state, step_fn, stream, mesh, *_, **__):
        caught.update(state=state, batch=loop.to_device(next(stream), mesh))
        raise Caught

    monkeypatch.setattr(run, "run_stage", catch)
    with pytest.raises(Caught):
        run.train_row(config, tmp_path / "run", watch=loop.Watch(progress=False))
    planned = job(config, rows=8 // caught["state"].step.sharding.mesh.shape["data"] //
                  caught["state"].step.sharding.mesh.shape["fsdp"] // changes.get("accumulate", 1))
    vocabulary = tokenizers.load(tmp_path / "run").vocab_size
    planned = dataclasses.replace(planned, model=program.model_config(config, vocabulary))
    compiled = lowering.compile_step(planned)
    assert compiled.memory.argument == held((caught["state"], caught["batch"]), jax.devices()[3])
    parts = program.stage_parts(planned.stage, config, planned.model)
    tx = run.optimizer.build(planned.stage.optimizer, planned.stage.steps)
    wanted = (program.abstract_state(planned.stage, parts, tx, planned.mesh),
              program.abstract_batch(planned.stage, planned.model, planned.mesh))
    found = (caught["state"], caught["batch"])
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


def closed_form(model, rows, images, length, remat):
    """Operations of a step by hand: every product forward and twice backward, the layers' again under full remat (but
    for the last one of a layer, whose result nobody needs), the head's again always, whole [T, T] scores."""
    llm = model.llm
    again = 1 if remat == "full" else 0
    layers = 2 * (linear_parameters(llm) * (3 + again) - again * llm.depth * llm.width * llm.mlp_dim)
    scores = 4 * llm.num_heads * llm.head_dim * llm.depth * length * (3 + again)
    head = 4 * 2 * llm.width * llm.vocab_size
    connector = model.connector
    channels = sum(encoder.width for encoder in model.vision) * connector.merge**2
    tokens = (connector.grid // connector.merge) ** 2
    first = 2 * tokens * channels * (connector.hidden or llm.width)       # its input is frozen: no gradient there
    image = sum(vision_flops(encoder) for encoder in model.vision) + 3 * connector_flops(model) - first
    return rows * (length * (layers + scores + head) + images * image)


@pytest.mark.parametrize("preset, remat, length", [
    pytest.param("nano_clip", "none", 96, marks=pytest.mark.slow), ("tiny_clip", "full", 256)])
def test_executed_operations_are_those_of_the_closed_form(tmp_path, preset, remat, length):
    rows = {"batch_size": 8, "length": length, "images": 2, "image_size": 16 if preset == "nano_clip" else 168,
            "packing": True}
    config = nano(tmp_path, model={"preset": preset, "remat": remat}, rows=rows, loss_chunk=32)
    planned = job(config)
    compiled = lowering.compile_step(planned)
    expected = closed_form(planned.model, 8, 2, length, remat)
    assert compiled.step.flops * 8 == pytest.approx(expected, rel=0.02)
    assert not compiled.step.unknown_loops and compiled.useful < expected


@functools.cache
def sharded(folder, fsdp=8, tensor=1, depth=2):
    """A compiled step of the smallest model under full remat, and its rows."""
    config = nano(folder, {"data": 1, "fsdp": fsdp, "tensor": tensor},
                  model={"preset": "nano_clip", "dtype": "bfloat16", "remat": "full"})
    planned = job(config, rows=2)
    llm = dataclasses.replace(planned.model.llm, depth=depth)
    compiled = lowering.compile_step(dataclasses.replace(planned, model=planned.model.replace(llm=llm)))
    return compiled, planned.stage.rows.batch_size


@pytest.mark.slow
def test_programs_do_not_grow_with_depth():
    shallow, deep = sharded("")[0], sharded("", depth=9)[0]
    assert abs(deep.instructions - shallow.instructions) <= 0.01 * shallow.instructions
    assert deep.step.flops > shallow.step.flops


@pytest.mark.slow
def test_recommended_meshes_replicate_nothing_against_their_will():
    """Nor does a device compute for the rows of others: fsdp and fsdp x tensor do the same work per row."""
    per_row = []
    for compiled, rows in (sharded(""), sharded("", fsdp=4, tensor=2)):
        assert compiled.involuntary == 0 and compiled.step.collectives()["all-gather"]["number"]
        per_row.append(compiled.step.flops * 8 / rows)
    assert per_row[0] == pytest.approx(per_row[1], rel=0.05)


def plan(tmp_path, config, *flags, check=True):
    file = tmp_path / "config.py"
    file.write_text(CONFIG.replace("{config!r}", repr(config)))
    # A fresh process: the number of fake devices is fixed when JAX starts.
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-m", "launch.plan", f"--config={file}", "--json", *flags], cwd=ROOT,
                          env=environment, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def test_a_v5e_64_of_fake_devices_in_a_process_of_its_own(tmp_path):
    config = nano(tmp_path, {"data": 1, "fsdp": 32, "tensor": 2},
                  model={"preset": "nano_clip", "dtype": "bfloat16", "remat": "full"})
    done = plan(tmp_path, config, "--rows=2", "--target=cpu:64", "--dump", str(tmp_path / "program.txt"))
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["involuntary_rematerializations"] == 0 and lowering.INVOLUNTARY not in done.stderr
    assert found["devices"] == 64 and found["batch_size"] == 64 and found["collectives"]["all-gather"]["number"]
    assert (tmp_path / "program.txt").read_text().startswith("HloModule")


def test_too_little_memory_is_one_sentence_with_a_way_out(tmp_path, monkeypatch, capsys):
    file = tmp_path / "config.py"
    config = nano(tmp_path, {"data": 2, "fsdp": 4, "tensor": 1}, model={"preset": "nano_clip"})
    file.write_text(CONFIG.replace("{config!r}", repr(config)))
    monkeypatch.setitem(os.environ, "XLA_FLAGS", os.environ["XLA_FLAGS"])     # `prepare` sets these for what starts
    monkeypatch.setitem(os.environ, "JAX_PLATFORMS", "cpu")
    one = lowering.compile_step(job(config))
    # Compiling each number of rows is what `launch.plan` does; here the first stands for them all.
    monkeypatch.setattr(lowering, "compile_step", lambda planned, *_: dataclasses.replace(
        one, rows=planned.rows, used=one.used * (9 + planned.rows) // 10))
    small = {rows: one.used * (9 + rows) // 10 for rows in (2, 3)}
    monkeypatch.setitem(targets.MACHINES, "cpu", targets.Machine("cpu", "cpu", "CPU", (small[2] + small[3]) // 2))
    with pytest.raises(UserError) as error:
        command.main([f"--config={file}", "--target=cpu:8", "--rows=4", "--json"])
    assert "4 rows per device do not fit" in str(error.value) and "2 rows would fit" in str(error.value)
    assert "--rows 2 --config.stages.tune.accumulate=2" in str(error.value) and "\n" not in str(error.value)
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["fits"] is False and values["largest"]["rows"] == 2 and values["largest"]["exact"]


@pytest.mark.parametrize("flags, sentence", [
    (["--target=a100-90gb:8"], "no machine 'a100-90gb'; did you mean a100-"),
    (["--target=a100-80gb"], "write a100-80gb:8"), (["--target=v5e:eight"], "write v5e:4x4"),
    (["--target=h100:12"], "take a multiple"),
    (["--target=cpu:8", "--stage=tunes"], "has no such stage"), (["--target=cpu:8", "--rows=-1"], "at least 1"),
    (["--target=cpu:8", "--link-share=2"], "between 0 and 1"),
    (["--target=cpu:8", "--config.mesh.fsdp=3"], "does not fit 8 devices"),
    (["--target=cpu:8", "--config.stages.tune.rows.batch_size=9"], "does not divide over data x fsdp")])
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, flags, sentence):
    monkeypatch.setitem(os.environ, "XLA_FLAGS", os.environ["XLA_FLAGS"])
    file = tmp_path / "config.py"
    file.write_text(CONFIG.replace("{config!r}", repr(nano(tmp_path))))
    with pytest.raises(UserError, match=sentence) as error:
        command.main([f"--config={file}", *flags])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("target, module, extra", [
    ("v5e:2x2", "libtpu", "plan-tpu"), ("h100:8", "jax_plugins", "plan-gpu")])
def test_a_missing_compiler_names_its_extra(monkeypatch, target, module, extra):
    there = targets.importlib.util.find_spec
    monkeypatch.setattr(targets.importlib.util, "find_spec",
                        lambda name: None if name.startswith(module) else there(name))
    with pytest.raises(UserError, match=rf"\[{extra}\].*{module}.*cannot be imported"):
        targets.devices(targets.parse(target))


def test_exit_code_2(tmp_path):
    done = plan(tmp_path, nano(tmp_path), "--target=v7:2x2", check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --target v7:2x2: there is no machine")


def test_every_machine_is_described():
    for machine in targets.MACHINES.values():
        assert (machine.peak > 0) == (machine.platform != "cpu") == (machine.memory > machine.headroom >= 0)
        if machine.platform == "cuda":
            text = targets.gpu_config(machine)
            assert f"device_memory_size: {machine.memory}" in text and text.count("{") == text.count("}")
    assert np.isclose(targets.parse("a100-40gb:8", headroom=2.0).budget, 42331013120 - 2 * 2**30)
