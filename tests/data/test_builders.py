"""The paper's datasets under their TFDS names, read without TensorFlow."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from spatialllm_jax.data import builders
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.storage import write_dataset
from spatialllm_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
import tensorflow_datasets as tfds
from PIL import Image
import spatialllm_jax.data.builders
source = tfds.data_source("spatial_vqa", split="test", data_dir=sys.argv[1])
again = tfds.builder_from_directory(sys.argv[1] + "/spatial_vqa/1.0.0").as_data_source("test")
assert [r["image_id"] for r in source] == [r["image_id"] for r in again] == [b"a", b"b"]
assert source[0]["image"].shape == (6, 8, 3) and "tensorflow" not in sys.modules
"""


def test_by_name(tmp_path):


    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "PNG")
    records = [ImageRecord(name, buffer.getvalue(), 8, 6, ()) for name in "ab"]
    write_dataset(tmp_path / "spatial_vqa" / "1.0.0", "spatial_vqa", {"test": records})
    # A fresh interpreter: other tests may have imported TensorFlow.
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, check=True)


@pytest.mark.parametrize("cls", [builders.SpatialVqa, builders.ProbingImageNet3D, builders.ProbingOpenImages,
                                 builders.SpatialFt])
def test_names_match_the_configs(cls, tmp_path):
    """`launch.generate --dataset DATASET` writes a dataset of the name that TFDS looks for."""
    from launch import config as configs

    assert configs.load(str(ROOT / "configs" / "data" / f"{cls.DATASET}.py"), []).name == cls.name
    assert tfds.builder_cls(cls.name) is cls
    with pytest.raises(UserError, match=f"--dataset {cls.DATASET} --out"):
        tfds.builder(cls.name, data_dir=tmp_path).download_and_prepare()
