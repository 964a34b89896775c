"""Real weights: SmolLM2-135M, a ViT-S/14 of DINOv2 architecture, stage 1 of the recipe on a CPU.

    python -m launch.real                       # fetches nothing, prepares everything, trains this
    python -m launch.train --config=configs/real.py --workdir=runs/real/run     # the training alone

Stage 1 has the roadmap's shape: only the connector trains, captions in LLaVA's `plain` form and probing
questions in the language model's own chat form. Several samples share a row, several questions a picture.
"""

from ml_collections import ConfigDict

DATA = "runs/real/scenes"


def get_config() -> ConfigDict:
    """The config of the run that `launch.real` does."""
    return ConfigDict({
        "row": "real", "size": "smollm2_135m", "seed": 0,
        "model": {"preset": "smollm2_135m", "text_tower": "tiny", "fit_vocabulary": False, "dtype": "float32",
                  "remat": "none", "attention": "xla", "unroll": 1},
        # An empty folder leaves that part random: no small CLIP is to be had without a model hub.
        "weights": {"vision/clip": "", "vision/dinov2": "runs/real/weights/dinov2-vit-s14",
                    "llm": "runs/real/weights/smollm2-135m"},
        "tokenizer": "runs/real/weights/smollm2-135m", "features": "runs/real/features",
        "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
        "stages": {"align": {
            "objective": "next_token", "trainable": "connector", "steps": 300,
            "rows": {"batch_size": 2, "length": 256, "images": 4, "image_size": 168, "packing": True},
            "optimizer": {"learning_rate": 2e-3, "schedule": "cosine", "warmup": 0.03, "b2": 0.98, "clip": 1.0},
            "template": "chatml", "system": "", "stored_features": True, "loss_chunk": 64,
            "log_every": 10, "save_every": 50,
            "sources": {"captions": _source({"caption": 1.0}, 0.7, "plain", 1),
                        "probing": _source({"depth": 1.0, "distance": 1.0, "azimuth": 1.0, "elevation": 0.5}, 0.3,
                                           "branches", 2)}}}})


def _source(types: dict[str, float], weight: float, form: str, questions: int) -> dict:
    return {"path": DATA, "types": types, "weight": weight, "form": form, "questions": questions, "split": "train"}
