"""A run of nano size, as a config file for processes of their own, and what it leaves behind."""

import json

CONFIG = '''
from ml_collections import ConfigDict


def get_config(arg=""):
    config = ConfigDict({config!r})
    return config
'''


def tree(data, workdir, **stage):
    rows = {"batch_size": 8, "length": 48, "images": 1, "image_size": 16, "packing": False, "resize": "stretch"}
    stage = {"objective": "next_token", "rows": rows, "template": "compact", "log_every": 1, "save_every": 3,
             "optimizer": {"learning_rate": 5e-3, "schedule": "constant", "warmup": 0.0}, "steps": 8,
             "trainable": "connector|llm", "sources": {"hand": {
                 "path": data, "types": {"colour": 1.0, "closer_to_camera": 1.0}, "form": "branches", "questions": 2}},
             **stage}
    return {"row": "nano", "size": "nano", "seed": 0,
            "model": {"preset": "nano", "text_tower": "nano", "fit_vocabulary": True, "dtype": "float32"},
            "weights": {}, "tokenizer": "", "features": "", "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
            "stages": {"tune": stage}}


def lines(folder):
    return [json.loads(line) for line in (folder / "tune" / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in lines(folder)]
