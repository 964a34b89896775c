"""A small local task of lmms-eval: pictures of noise, questions on them, and a run of its command over them."""

import io
import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image

from spatialllm_jax.inference.prompts import Prompt

COMMON = """\
dataset_path: {data}
dataset_kwargs:
  load_from_disk: true
test_split: test
doc_to_visual: !function local_docs.pictures
doc_to_text: question
"""
WORDS = COMMON + """\
task: local_words
output_type: generate_until
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 6
  temperature: 0
  do_sample: false
  until: ["e"]
process_results: !function local_docs.marks
metric_list:
  - metric: equal
    aggregation: mean
    higher_is_better: true
"""
CHOICES = COMMON + """\
task: local_choices
output_type: multiple_choice
doc_to_choice: !function local_docs.options
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
DOCS = """\
def pictures(doc):
    return [doc["image"].convert("RGB")] if doc["image"] is not None else []


def options(doc):
    return ["yes", "no", "a wall"]


def marks(doc, results):
    return {"equal": float(results[0] == doc["answer"])}
"""


def documents_of(asked, pictures):
    """So many pictures with each of the questions but the last, which is asked without a picture."""
    rng = np.random.default_rng(0)
    found = [{"image": Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)), "question": question,
              "answer": "yes", "label": k % 3} for _ in range(pictures) for k, question in enumerate(asked[:-1])]
    return [*found, {"image": None, "question": asked[-1], "answer": "no", "label": 1}]


def lmms(tmp_path, documents, model, arguments, yaml, name, *more):
    """Runs lmms-eval's `model` over the documents; returns (one line per document, the task's result)."""
    import datasets

    shown = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string"),
                               "answer": datasets.Value("string"), "label": datasets.Value("int32")})
    data = datasets.DatasetDict({"test": datasets.Dataset.from_list(documents, features=shown)})
    data.save_to_disk(tmp_path / "data")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/local_docs.py").write_text(DOCS)
    (tmp_path / f"tasks/{name}.yaml").write_text(yaml.format(data=tmp_path / "data"))
    done = subprocess.run(
        [sys.executable, "-m", "lmms_eval", "--model", model, "--model_args", arguments, "--tasks", name,
         "--include_path", tmp_path / "tasks", "--batch_size", "4", "--log_samples",
         "--output_path", tmp_path / "out", *more], text=True, capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")})
    # lmms-eval ends with 0 after errors too: what it wrote tells.
    found = [list((tmp_path / "out").rglob(pattern)) for pattern in (f"*samples_{name}.jsonl", "*results.json")]
    assert all(found), done.stdout[-3000:] + done.stderr[-6000:]
    (samples,), (results,) = found
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return sorted(lines, key=lambda line: line["doc_id"]), json.loads(results.read_text())["results"][name]


def prompts_of(documents, options=()):
    """The same questions as the engine is asked them."""
    def encoded(image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    return [Prompt(f"{k}", encoded(doc["image"]) if doc["image"] else b"", doc["question"].replace("<image>", ""),
                   options) for k, doc in enumerate(documents)]
