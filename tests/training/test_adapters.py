"""LoRA and quantised stages: what trains, what stays to the bit, what is in the folders they leave."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import lora, roadmap
from convert import to_hf
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference.engine import load_engine
from spatialllm_jax.models import store
from spatialllm_jax.models.clip_text import CLIP, abstract_clip
from spatialllm_jax.models.linear import merge_lora
from spatialllm_jax.models.presets import clip_preset, preset
from spatialllm_jax.models.spatialllm import SpatialLLM, abstract_params
from spatialllm_jax.parallel.mesh import make_mesh
from spatialllm_jax.training import frozen, initial, loop, optimizer, program, run
from spatialllm_jax.training.config import stage_config
from spatialllm_jax.training.partition import flatten, split, unflatten
from tests.compiled import compilation_cache  # noqa: F401
from tests.conftest import random_params
from tests.training.test_run import config, losses, train

LORA = {"rank": 4, "alpha": 8.0}
QLORA = {"steps": 20, "trainable": "connector|llm/.*lora_", "llm_lora": LORA, "log_every": 1,
         "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0, "scales": {"connector": 0.1}}}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def start(tiny_dataset, tiny_tokenizer, tmp_path_factory):
    """(folder of a random nano model that stages start from, its flat parameters)."""
    folder = tmp_path_factory.mktemp("start") / "model"
    model = program.model_config(config(tiny_dataset, folder), tiny_tokenizer.vocab_size)
    params = random_params(model)
    # Words as large as trained ones: with a frozen head, LoRA could hardly move the logits of small ones.
    params["llm"]["embedding"] *= 10
    params["llm"]["norm"]["scale"] += 1
    store.save_model(folder, model, params)
    tiny_tokenizer.save(folder)
    return str(folder), {path: np.asarray(leaf) for path, leaf in store.load_params(folder).items()}


@pytest.fixture(scope="module")
def states():
    """States that `trained` began with, by workdir."""
    return {}


@pytest.fixture(scope="module")
def trained(tiny_dataset, start, states, tmp_path_factory):
    """A function that trains stages from `start` and gives the run's folder."""
    def trained(name, **stages):
        workdir = tmp_path_factory.mktemp("runs") / name
        tree = config(tiny_dataset, workdir, **stages)
        with pytest.MonkeyPatch.context() as patch:
            def remembered(stage, state, *args, **kwargs):
                states[workdir, stage.name] = jax.tree.map(
                    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
                return loop.run_stage(stage, state, *args, **kwargs)

            patch.setattr(run, "run_stage", remembered)
            train({**tree, "weights": {"": start[0]}, "tokenizer": start[0]}, workdir)
        return workdir
    return trained


@pytest.fixture(scope="module")
def merged(trained):
    """LoRA on a 4-bit language model, merged, and then a stage that trains nothing but the connector."""
    return trained("merged", tune={**QLORA, "quantize": "int4"})


@pytest.fixture(scope="module")
def kept(trained):
    """The same, its LoRA kept apart, and a stage of the whole language model after it at learning rate 0."""
    return trained("kept", tune={**QLORA, "quantize": "int4", "keep_lora": True},
                   after={"steps": 1, "trainable": "connector|llm", "optimizer": {"learning_rate": 0.0}})


def flat(folder):
    return {path: np.asarray(leaf) for path, leaf in store.load_params(folder).items()}


def test_a_quantised_stage_learns_and_keeps_moments_of_what_trains_alone(merged, states):
    found = losses(merged / "tune")
    assert np.mean(found[-3:]) < 0.8 * found[0]
    state = states[merged, "tune"]
    assert all(path.startswith("connector/") or "lora_" in path for path in state.trainable)
    assert {leaf.dtype for leaf in state.trainable.values()} == {jnp.dtype(jnp.float32)}
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * sum(leaf.size for leaf in state.trainable.values())
    kernels = [path for path in state.frozen if path.startswith("llm/layers/") and "kernel" in path]
    assert len(kernels) == 7 and {state.frozen[path].dtype for path in kernels} == {jnp.dtype(jnp.uint8)}


@pytest.mark.slow
def test_lora_is_merged_into_the_exact_kernels(merged, kept, start):
    """Apart or merged, the stage leaves what it began with, exactly, and the same updates."""
    apart, together = flat(kept / "tune" / "model"), flat(merged / "tune" / "model")
    assert together.keys() == start[1].keys()
    for path, leaf in apart.items():
        if "lora_" not in path and not path.startswith("connector/"):
            np.testing.assert_array_equal(leaf, start[1][path], err_msg=path)
    assert store.load_config(merged / "tune" / "model").llm_lora is None
    adapted = store.load_config(kept / "tune" / "model")
    assert adapted.llm_lora.rank == 4 and adapted.llm_quantize == "none"
    for path, leaf in flatten(merge_lora(unflatten(apart), adapted)).items():
        np.testing.assert_allclose(together[path], leaf, atol=1e-6, err_msg=path)
    changed = {path for path, leaf in together.items() if (leaf != start[1][path]).any()}
    assert {path for path in changed if not path.startswith("connector/")} == {
        path for path in together if path.startswith("llm/layers/") and path.endswith("/kernel")}


def test_merged_computes_what_lora_computes(merged, kept):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64, (2, 12))
    batch = dict(tokens=tokens, positions=np.tile(np.arange(12), (2, 1)), segment_ids=np.ones_like(tokens),
                 branch_ids=0 * tokens, image_index=np.tile(np.r_[np.arange(4), [-1] * 8], (2, 1)),
                 images=rng.integers(0, 256, (2, 1, 16, 16, 3), dtype=np.uint8))

    def run_model(folder):
        model = SpatialLLM(store.load_config(folder))
        return jax.jit(lambda params: model.apply({"params": params}, **batch))(unflatten(flat(folder)))

    np.testing.assert_allclose(run_model(kept / "tune" / "model"), run_model(merged / "tune" / "model"), atol=1e-5)


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
@pytest.mark.slow
def test_a_quantised_stage_on_eight_devices(trained, merged):
    """Kernels, their scales and LoRA split over all axes of the mesh: the same losses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_mesh", lambda **_: make_mesh(2, 2, 2))
        workdir = trained("eight", tune={**QLORA, "steps": 4, "quantize": "int4"})
    np.testing.assert_allclose(losses(workdir / "tune"), losses(merged / "tune")[:4], atol=1e-4, rtol=0)


def test_what_comes_after_starts_from_the_merged_model(kept, merged):
    after, before = flat(kept / "after" / "model"), flat(merged / "tune" / "model")
    assert after.keys() == before.keys()
    for path, leaf in before.items():
        np.testing.assert_allclose(after[path], leaf, atol=1e-6, err_msg=path)


def test_kept_updates_can_be_evaluated_exported_and_started_from(kept, merged, tmp_path):
    folder = kept / "tune" / "model"
    engine = load_engine(folder)
    assert engine.model.config.llm_lora is not None and "lora_a" in str(jax.tree.structure(engine.params))
    # config.weights
    read, plain = store.merged(store.open_weights(folder)), flat(merged / "tune" / "model")
    assert set(read.shapes) == set(plain) and read.config == store.load_config(merged / "tune" / "model")
    path = "llm/layers/mlp/up/kernel"
    narrow = read.load(path, dtypes={path: jnp.bfloat16})[path]
    np.testing.assert_array_equal(narrow, read.load(path)[path].astype(jnp.bfloat16))   # added, then rounded once
    bare = dataclasses.replace(store.open_weights(folder), config=preset("nano"))
    with pytest.raises(UserError, match=r"holds LoRA updates of llm/layers/attention/key, but its config\.json has no"):
        store.merged(bare)
    # peft's adapter
    to_hf.main([str(folder), "--part", "llm", "--lora", "adapter", "--out", str(tmp_path / "adapter")])
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    up = next(name for name in tensors if "layers.1.mlp.up_proj.lora_A" in name)
    np.testing.assert_array_equal(tensors[up], flat(folder)["llm/layers/mlp/up/lora_a"][1].T)
    assert len(tensors) == 2 * 2 * 7


class Begun(Exception):
    """Raised in place of a stage's steps."""


def test_frozen_bfloat16_is_not_what_the_next_stage_trains(trained, states, start, monkeypatch):
    """Stage 1 freezes, in bfloat16, what stage 2 trains: it comes exact, from the files."""
    begun, run_stage = {}, loop.run_stage

    def first_alone(stage, state, *args, **kwargs):
        if stage.name == "align":
            return run_stage(stage, state, *args, **kwargs)
        begun.update({path: np.asarray(leaf) for path, leaf in state.trainable.items()})
        raise Begun

    monkeypatch.setattr(loop, "run_stage", first_alone)
    with pytest.raises(Begun):
        trained("bfloat16", align={"steps": 2, "trainable": "connector", "frozen_dtype": "bfloat16"},
                tune={"steps": 1, "trainable": "connector|llm", "frozen_dtype": "bfloat16"})
    workdir = next(workdir for workdir, _ in states if workdir.name == "bfloat16")
    held = states[workdir, "align"].frozen
    assert {path for path, leaf in held.items() if leaf.dtype == jnp.bfloat16} == {
        path for path in held if path.endswith(("/kernel", "llm/embedding"))}
    left = flat(workdir / "align" / "model")
    assert begun.keys() == {path for path in left if path.startswith(("connector/", "llm/"))}
    for path, leaf in start[1].items():
        assert left[path].dtype == np.float32
        if not path.startswith("connector/"):
            np.testing.assert_array_equal(left[path], leaf, err_msg=path)
        if path in begun:
            assert begun[path].dtype == np.float32
            np.testing.assert_array_equal(begun[path], left[path], err_msg=path)
    assert (start[1]["llm/embedding"].astype(jnp.bfloat16) != start[1]["llm/embedding"]).any()


@pytest.mark.slow
def test_random_frozen_weights_are_drawn_again(tiny_dataset, tmp_path):
    """Without any weights the exact ones are the same random numbers."""
    tree = config(tiny_dataset, tmp_path, a={"steps": 1, "trainable": "connector"})
    exact = train(tree, tmp_path / "exact")
    tree["stages"]["a"] |= {"quantize": "int8", "frozen_dtype": "bfloat16"}
    rounded = train(tree, tmp_path / "rounded")
    one, other = flat(exact["model"]), flat(rounded["model"])
    assert one.keys() == other.keys()
    assert all((one[path] == other[path]).all() for path in one if not path.startswith("connector/"))
    assert any((one[path] != other[path]).any() for path in one if path.startswith("connector/"))


@pytest.mark.slow
def test_under_bfloat16_compute_bfloat16_weights_change_nothing():
    """To the bit, in the whole model and in CLIP: what is held narrow is cast before use anyway."""
    rng = np.random.default_rng(0)
    pictures, tokens = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8), rng.integers(0, 64, (2, 9))
    stage = dict(objective="next_token", steps=1, rows={"batch_size": 2, "length": 9, "images": 1, "image_size": 16},
                 optimizer={"learning_rate": 1.0}, sources={"a": {"path": "", "types": {"what": 1.0}}},
                 trainable="vision/clip/class_token", frozen_dtype="bfloat16")

    def held(abstract):
        shapes = flatten(abstract)
        exact = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
        narrow = frozen.held(shapes, stage_config("s", stage))
        return unflatten(exact), unflatten({path: leaf.astype(narrow[path].dtype) for path, leaf in exact.items()})

    model = SpatialLLM(preset("nano").replace(dtype="bfloat16"))
    clip = CLIP(dataclasses.replace(clip_preset("nano"), dtype="bfloat16"))
    batch = dict(positions=np.tile(np.arange(9), (2, 1)), segment_ids=np.ones_like(tokens), branch_ids=0 * tokens,
                 image_index=np.tile(np.r_[np.arange(4), [-1] * 5], (2, 1)), images=pictures[:, None])
    for abstract, forward in [
            (abstract_params(model.config), lambda p: model.apply({"params": p}, tokens, **batch)),
            (abstract_clip(clip.config), lambda p: clip.apply({"params": p}, pictures, tokens, np.array([8, 8])))]:
        exact, narrow = held(abstract)
        assert any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(narrow))
        for a, b in zip(jax.tree.leaves(forward(exact)), jax.tree.leaves(forward(narrow)), strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@pytest.mark.parametrize("row", ["stage0_contrastive", "stage0_next_token"])
def test_stage_0_of_the_full_rows_trains_what_the_recipes_say(row, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(run, "stage_tokenizer", lambda stage, tokenizer: tiny_tokenizer)   # weights/ is not here
    tree = roadmap.get_config(row).to_dict()
    stages = [stage_config(name, value) for name, value in tree["stages"].items()][:2]
    parts = [run._parts(stage, tree, preset("spatialllm_8b").replace(dtype="bfloat16"), tiny_tokenizer)
             for stage in stages]
    initial.check_prefixes(tree["weights"], [part.abstract for part in parts])
    chosen, rest = split(parts[0].abstract, stages[0].trainable)
    contrastive = row == "stage0_contrastive"
    updates = {path for path in chosen if "lora_" in path}
    assert len(updates) == 2 * 6 and all(path.startswith("vision/clip/blocks/") for path in updates)
    assert {path.split("/")[0] for path in chosen if path not in updates} == (set() if contrastive else {"connector"})
    assert not any("lora_" in path for path in rest) and parts[0].config.dtype == "bfloat16"
    assert {path.split("/")[0] for path in rest} == ({"vision", "text", "vision_projection", "text_projection",
                                                      "logit_scale"} if contrastive else {"vision", "llm"})
    # Everything frozen comes from a folder, and stage 1 runs without LoRA.
    assert all(any(store.under(path, prefix) for prefix in tree["weights"]) for path in rest)
    assert not any("lora_" in path for path in parts[1].abstract)
    with pytest.raises(UserError, match=r"'stage0' is contrastive.*stages\.stage0\.tokenizer") if contrastive \
            else contextlib.nullcontext():
        monkeypatch.setattr(run, "stage_tokenizer", lambda stage, tokenizer: Llamas())
        run._parts(stages[0], tree, preset("spatialllm_8b"), tiny_tokenizer)


class Llamas:
    """As many tokens as Llama 3's."""

    vocab_size = 128256


def test_lora_recipe():
    stage = stage_config("tune", lora.get_config("align_in166k").to_dict()["stages"]["tune"])
    assert (stage.llm_lora.rank, stage.llm_lora.alpha, stage.optimizer.learning_rate) == (128, 256.0, 2e-4)
    params = {"connector/linear_0/kernel": jnp.ones(2), "llm/layers/mlp/up/lora_b": jnp.ones(2)}
    tx = optimizer.build(dataclasses.replace(stage.optimizer, warmup=0.0, schedule="constant"), 10)
    updates, _ = tx.update(params, tx.init(params), params)
    rates = [float(-updates[path][0]) for path in params]
    np.testing.assert_allclose(rates, [2e-5, 2e-4], rtol=1e-4)


@pytest.mark.parametrize(("changes", "words"), [
    ({"trainable": "connector|llm"}, r"'tune' quantises llm/layers/.*kernel, which it trains; set quantize to none"),
    ({"trainable": "connector"}, "has LoRA updates, but trainable='connector' matches none of them"),
])
def test_what_cannot_train_together(tiny_dataset, tmp_path, changes, words):
    tree = config(tiny_dataset, tmp_path, tune={**QLORA, "quantize": "int8", **changes})
    with pytest.raises(UserError, match=words):
        train(tree, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_scales_of_quantised_kernels_never_train(trained, states, monkeypatch):
    """An expression for the norms' scales does not reach those of the kernels."""
    def begun(*args, **kwargs):
        raise Begun

    monkeypatch.setattr(loop, "run_stage", begun)
    with pytest.raises(Begun):
        trained("scales", tune={**QLORA, "steps": 1, "quantize": "int8", "trainable": "llm/.*(lora_|scale)"})
    (state,) = [state for (workdir, _), state in states.items() if workdir.name == "scales"]
    assert "llm/norm/scale" in state.trainable and "llm/layers/mlp/up/scale_int8" in state.frozen
    assert not any(path.endswith("int8") for path in state.trainable)
