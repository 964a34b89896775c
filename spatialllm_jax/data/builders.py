"""The paper's datasets under their names in TFDS, so that `tfds.data_source("spatial_vqa", ...)` finds them.

Import this module, and keep datasets where TFDS looks for them, `DATA_DIR/NAME/1.0.0`:

    python -m launch.generate --dataset spatial_vqa ... --out DATA_DIR/spatial_vqa/1.0.0

The builders read; only `launch.generate` writes, since annotations and pictures come under licences that a download
script must not accept on anybody's behalf.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from spatialllm_jax.data.storage import DESCRIPTION, VERSION, tfds_features
from spatialllm_jax.errors import UserError


class _Generated(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A dataset that `launch.generate` wrote."""

    VERSION = tfds.core.Version(VERSION)
    DATASET = ""  # of `launch.generate --dataset`

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, description=DESCRIPTION, features=tfds_features())

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Does nothing for a dataset that is there. Raises UserError otherwise: this builder cannot make it."""
        if self.is_prepared():
            return
        raise UserError(f"{self.name} is not in {self.data_dir}; write it with python -m launch.generate "
                        f"--dataset {self.DATASET} --out {self.data_dir}")

    def _split_generators(self, dl_manager: Any, pipeline: Any = None) -> dict[str, Any]:
        raise NotImplementedError("launch.generate writes this dataset")

    def _generate_examples(self, **kwargs: Any) -> Iterator[Any]:
        raise NotImplementedError("launch.generate writes this dataset")


class SpatialVqa(_Generated):
    """SpatialVQA, rebuilt."""

    name = "spatial_vqa"
    DATASET = "spatial_vqa"


class ProbingImageNet3D(_Generated):
    """3DI-Pb-IN166K."""

    name = "spatialllm_3di_pb_in166k"
    DATASET = "3di_pb_in166k"


class ProbingOpenImages(_Generated):
    """3DI-Pb-OI1M."""

    name = "spatialllm_3di_pb_oi1m"
    DATASET = "3di_pb_oi1m"


class SpatialFt(_Generated):
    """3DI-Ft1M."""

    name = "spatialllm_3di_ft1m"
    DATASET = "3di_ft1m"
