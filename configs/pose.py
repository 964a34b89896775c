"""The pose estimator that the paper takes from ImageNet3D: a head on frozen DINOv2 features.

    python -m launch.train --config=configs/pose.py --config.data.path=imagenet3d --config.weights=weights/dinov2-l
    python -m launch.train --config=configs/pose.py:rendered

`imagenet3d` is for the real thing; `rendered` for pictures that `python -m launch.pose render` wrote, and a laptop.
What the paper does not say (head, crop, layers) is ours; docs/pose.md has the reasons.
"""

from ml_collections import ConfigDict

from spatialllm_jax.errors import UserError

NAMES = ("imagenet3d", "rendered")


def get_config(arg: str = "imagenet3d") -> ConfigDict:
    """The config of one of `NAMES`."""
    if arg not in NAMES:
        raise UserError(f"--config: unknown pose config {arg!r}; choose one of {', '.join(NAMES)}")
    rendered = arg == "rendered"
    return ConfigDict({
        "task": "pose", "row": "pose", "size": arg, "seed": 0,
        # A model folder or a transformers folder that holds the encoder; its name where there are several.
        "weights": "runs/pose/weights/dinov2-vit-s14" if rendered else "", "encoder": "",
        # Random weights of the same shape: the baseline that says what training the encoder was worth.
        "random_weights": False,
        "image_size": 140 if rendered else 224,
        "model": {"layers": (5, 8) if rendered else (12, -1), "grid": 5 if rendered else 8,
                  "width": 128, "hidden": 1024, "input_dropout": 0.5 if rendered else 0.2, "dropout": 0.5,
                  "output": "bins", "bin_size": 5.0, "target_spread": 12.0, "context": 1.2, "cls": True},
        "data": {"path": "runs/pose/data" if rendered else "imagenet3d", "mirror": True, "jitter": True,
                 "fronts_only": False, "train_limit": 0, "val_limit": 0},
        # Stored features: WORKDIR/features where it is empty.
        "features": "",
        "training": {"steps": 800 if rendered else 20_000, "batch_size": 64 if rendered else 256,
                     "save_every": 200 if rendered else 2000, "log_every": 40,
                     "optimizer": {"learning_rate": 5e-4, "warmup": 0.05, "b2": 0.98,
                                   "weight_decay": 0.3 if rendered else 0.05, "clip": 1.0, "schedule": "cosine"}},
        "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
    })
