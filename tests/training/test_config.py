"""Mistakes in configs are named; overrides reach the value they name."""

import ml_collections
import pytest

from launch import config as configs
from spatialllm_jax.data.samples import SourceConfig
from spatialllm_jax.errors import UserError
from spatialllm_jax.training.config import stage_config

ROADMAP = "configs/roadmap.py"


def tree(**changes):
    base = {"objective": "next_token", "trainable": "connector", "steps": 3,
            "rows": {"batch_size": 4, "length": 32, "images": 1, "image_size": 16},
            "optimizer": {"learning_rate": 1e-3},
            "sources": {"hand": {"path": "data", "types": {"caption": 1.0}}}}
    return {**base, **changes}


def test_a_stage():
    sources = {"off": {"path": "none", "types": {"what": 1.0}, "weight": 0.0}, **tree()["sources"]}
    stage = stage_config("align", tree(sources=sources, lora={"rank": 2, "alpha": 4.0}))
    assert (stage.name, stage.rows.length, stage.optimizer.learning_rate, stage.lora.rank) == ("align", 32, 1e-3, 2)
    assert stage.sources == (SourceConfig("hand", "data", {"caption": 1.0}),)
    assert stage.trains_vision and not stage_config("align", tree()).trains_vision


@pytest.mark.parametrize(("changes", "words"), [
    ({"learning_rate": 1}, r"config\.stages\.align has no field 'learning_rate'; it has .*optimizer"),
    ({"optimizer": {"lr": 1}}, r"config\.stages\.align\.optimizer has no field 'lr'; it has .*learning_rate"),
    ({"optimizer": {}}, r"config\.stages\.align\.optimizer.*learning_rate"),
    ({"rows": {"batch": 4}}, r"config\.stages\.align\.rows has no field 'batch'"),
    ({"sources": {"cc": {"paths": "x"}}}, r"config\.stages\.align\.sources\.cc has no field 'paths'"),
    ({"sources": {"cc": {"path": "x", "types": {"what": 1}, "form": "chat"}}}, "source 'cc': unknown form 'chat'"),
    ({"sources": {}}, "'align' has no data sources"),
    ({"lora": {"ranks": 2}}, r"config\.stages\.align\.lora has no field 'ranks'"),
    ({"objective": "mse"}, "unknown objective 'mse'; choose one of next_token, patch_words, contrastive"),
    ({"steps": 0}, "must be at least 1"),
    ({"accumulate": 3}, "batch_size 4 does not divide into 3 micro-batches"),
    ({"trainable": "vision|connector", "stored_features": True}, "features cannot be stored"),
    ({"objective": "contrastive", "accumulate": 2}, "contrastive.*accumulate"),
    ({"rows": {"length": 32}}, "batch_size where rows.samples is set"),
    ({"rows": {"length": 32, "batch_size": 2, "samples": 4}}, "two ways to say the same"),
    ({"rows": {"length": 32, "batch_size": 2, "packing": "tight"}}, "'tight' is unknown"),
    ({"stored_features": True, "sources": {"mix": {"path": "mix.json"}}}, r"mix\.json is a LLaVA JSON file"),
    ({"llm_lora": {"ranks": 2}}, r"config\.stages\.align\.llm_lora has no field 'ranks'"),
    ({"quantize": "int2"}, "'align': quantize 'int2' is unknown; choose one of none, int8, int4"),
    ({"frozen_dtype": "float16"}, "frozen_dtype 'float16' is unknown; choose one of float32, bfloat16"),
    ({"objective": "contrastive", "quantize": "int8"}, "contrastive and runs no language model"),
    ({"keep_lora": True}, "keeps LoRA updates but has none; set lora or llm_lora"),
    ({"contrast_chunk": 64}, "contrast_chunk 64 is for contrastive stages"),
])
def test_mistakes_in_a_stage(changes, words):
    with pytest.raises(UserError, match=words):
        stage_config("align", tree(**changes))


def test_samples_and_counts_stand_in_for_rows_and_steps():
    counted = {"hand": {"path": "data", "types": {"caption": 1.0}, "count": 40}}
    stage = stage_config("align", tree(steps=0, sources=counted, rows={"samples": 128, "length": 64}))
    assert (stage.steps, stage.rows.samples, stage.rows.batch_size, stage.sources[0].count) == (0, 128, 0, 40)


def test_overrides_of_every_kind():
    config = configs.load(f"{ROADMAP}:align_in166k", [
        "--config.size=tiny", "--config.stages.tune.steps=7", "--config.seed=3", "--config.tokenizer=123",
        "--config.stages.tune.optimizer.learning_rate=1", "--config.stages.align.stored_features=false",
        "--config.weights.vision/clip=elsewhere", "--config.stages.tune.sources.general.types.what=2"])
    assert config.size == "tiny" and config.row == "align_in166k" and config.seed == 3
    assert config.stages.tune.steps == 7 and config.tokenizer == "123"
    rate = config.stages.tune.optimizer.learning_rate
    assert rate == 1.0 and isinstance(rate, float)
    assert config.stages.align.stored_features is False and config.weights["vision/clip"] == "elsewhere"
    assert config.stages.tune.sources.general.types.what == 2.0


@pytest.mark.parametrize(("overrides", "words"), [
    (["--config.stages.tuen.steps=7"], r"--config\.stages\.tuen\.steps: config\.stages has no field 'tuen'.*'tune'"),
    (["--config.stages.tune.stepz=7"], r"config\.stages\.tune has no field 'stepz'; did you mean 'steps'"),
    (["--config.seed.deeper=7"], "has no field 'deeper'"),
    (["--config.stages.tune.steps=many"], r"steps=many: expected a int, got a str"),
    (["--config.stages.tune.steps=1.5"], r"expected a int, got a float"),
    (["--config.size=huge"], "choose full or tiny"),
])
def test_mistakes_in_overrides(overrides, words):
    with pytest.raises(UserError, match=words):
        configs.load(f"{ROADMAP}:llama3", overrides)


def test_mistakes_in_the_file(tmp_path):
    with pytest.raises(UserError, match="unknown row 'llama4'; choose one of llava15"):
        configs.load(f"{ROADMAP}:llama4", [])
    with pytest.raises(UserError, match=r"nowhere\.py does not exist"):
        configs.load("nowhere.py", [])
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(UserError, match=r"empty\.py has no get_config"):
        configs.load(str(empty), [])


def test_arguments_are_split():
    plain, overrides = configs.split_arguments(
        ["--workdir", "runs/a", "--config.seed", "3", "--config=f.py:x", "--config.size=tiny", "--quiet"])
    assert plain == ["--workdir", "runs/a", "--config=f.py:x", "--quiet"]
    assert overrides == ["--config.seed=3", "--config.size=tiny"]
    with pytest.raises(UserError, match=r"--config\.seed needs a value"):
        configs.split_arguments(["--config.seed"])


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_every_row_of_the_roadmap_is_well_formed(size):
    from configs.roadmap import ROWS

    for row in ROWS:
        config = configs.load(f"{ROADMAP}:{row}", [f"--config.size={size}"])
        assert isinstance(config, ml_collections.ConfigDict)
        stages = [stage_config(name, value) for name, value in config.to_dict()["stages"].items()]
        names = [stage.name for stage in stages]
        assert names == ["stage0"] * row.startswith("stage0") + ["patches"] * (size == "tiny") + ["align", "tune"]
        sources = {source.name for stage in stages for source in stage.sources}
        assert ("3di_ft1m" in sources) == (row in ("ft1m", "align_ft1m", "align_oi1m", "align_in166k")
                                           or row.startswith("stage0"))
