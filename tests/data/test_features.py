import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from spatialllm_jax.data.features import FeatureStore, build
from spatialllm_jax.errors import UserError

IDS = [f"i{k}" for k in range(7)]


class Encoder:
    """Counts its calls; features are a plain function of the pixels."""

    def __init__(self):
        self.batches = []

    def load(self, index):
        return np.full((4, 4, 3), 10 * index, np.uint8)

    def __call__(self, pixels):
        self.batches.append(len(pixels))
        return np.stack([np.arange(6).reshape(2, 3) + image.mean() for image in pixels]).astype(np.float32)


def make(folder, encoder, key="a", ids=IDS, **kwargs):
    return build(folder, key, ids, encoder.load, encoder, batch_size=3, show_progress=False, **kwargs)


def test_values_padding_and_pickling(tmp_path):
    encoder = Encoder()
    store = make(tmp_path / "store", encoder)
    assert encoder.batches == [3, 3, 3]                          # the last one padded: one program serves all
    for copy in (store, pickle.loads(pickle.dumps(store)), FeatureStore(str(tmp_path / "store"), "a")):
        assert copy.shape == (2, 3)
        for index, name in enumerate(IDS):
            assert (copy[name] == np.arange(6).reshape(2, 3) + 10 * index).all() and copy[name].dtype == np.float16


def test_reused_when_key_and_ids_agree_and_made_anew_otherwise(tmp_path):
    encoder = Encoder()
    make(tmp_path / "store", encoder)
    make(tmp_path / "store", encoder)
    assert len(encoder.batches) == 3
    make(tmp_path / "store", encoder, key="b")
    assert len(encoder.batches) == 6
    store = make(tmp_path / "store", encoder, key="b", ids=IDS[:2])
    assert len(encoder.batches) == 7 and store["i1"].mean() == 2.5 + 10
    with pytest.raises(UserError, match="no features for image 'i2'"):
        store["i2"]


def test_other_weights_are_noticed(tmp_path):
    store = make(tmp_path / "store", Encoder())
    with pytest.raises(UserError, match="other weights"):
        FeatureStore(store.folder, "b")["i0"]
    with pytest.raises(UserError, match="no feature store at"):
        FeatureStore(str(tmp_path / "none"), "a")["i0"]


def test_an_interrupted_build_leaves_nothing_to_mistake_for_a_store(tmp_path):
    class Broken(Encoder):
        def __call__(self, pixels):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().__call__(pixels)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "store", Broken())
    assert not (tmp_path / "store").exists()
    make(tmp_path / "store", Encoder())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_non_finite_features_and_no_images(tmp_path):
    class NotFinite(Encoder):
        def __call__(self, pixels):
            return super().__call__(pixels) * np.where(pixels[:, :1, 0, :1].mean(axis=2) == 40, np.nan, 1.0)[..., None]

    with pytest.raises(UserError, match="non-finite features for 'i3'"):
        make(tmp_path / "store", NotFinite())
    with pytest.raises(UserError, match="no images to encode"):
        make(tmp_path / "empty", Encoder(), ids=[])
    assert not (tmp_path / "store").exists() and not (tmp_path / "empty").exists()


def test_meta_is_plain_json(tmp_path):
    make(tmp_path / "store", Encoder())
    assert json.loads(Path(tmp_path / "store" / "features.json").read_text())["ids"] == IDS
