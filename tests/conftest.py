"""Tests run on eight fake CPU devices, so that sharding is exercised everywhere."""

import contextlib
import io
import os

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]).strip()
# Most of a test's time is compilation, a third of that LLVM's passes, which small programs do not need. Commands that
# tests start inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Two pytest workers on two cores: more threads per process would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# CUDA builds of torch bring triton, whose LLVM crashes when Mesa has loaded its own before it (the rendering tests).
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def tiny_records(split, count):
    """Hand-made records: plain coloured pictures whose blue value ends in their number, and easy questions."""
    from spatialllm_jax.data.records import ImageRecord
    from spatialllm_jax.questions.types import Question, Region

    records = []
    for index in range(count):
        name = list(COLOURS)[index % 3]
        pixels = np.full((20, 24, 3), COLOURS[name], np.uint8)
        pixels[:, :, 2] += index
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        image = f"{split}-{index}"
        cat = Region("0", (0.1, 0.1, 0.4, 0.6), "cat")
        dog = Region("0", (0.5, 0.1, 0.9, 0.6), "dog")

        def ask(kind, question, answer, options=(), regions=(), style="name", group="general", image=image, **kwargs):
            return Question(f"{image}/{kind}/{len(question)}{answer}", image, kind, group, "hand",
                            ((question, answer),), regions, style, options,
                            options.index(answer) if options else None, **kwargs)

        nearer = "cat" if index % 2 else "dog"
        records.append(ImageRecord(image, buffer.getvalue(), 24, 20, (
            ask("caption", "Describe the picture.", f"a {name} wall"),
            ask("caption", "What do you see?", f"a wall in {name}"),
            ask("colour", "What colour is the wall?", name),
            ask("what", "What is this?", "a wall"),
            ask("what", "What does the picture show?", "a wall"),
            ask("left_right", "Is the cat left of the dog?", "yes", ("yes", "no"), quantities={
                "x_first": 1.0, "x_second": 2.0}),
            ask("depth", "How far is the cat?", f"{1 + index % 4} metres", group="probing"),
            ask("closer_to_camera", "Which is closer, the cat or the dog?", nearer, ("cat", "dog"),
                group="distance", quantities={"distance_first": 1.0 + (index + 1) % 2, "distance_second": 1.5}),
            # Both draw a mark called 0, on different things: never on one picture together.
            ask("higher", "Is the cat [0] high?", "cat", ("cat", "dog"), (cat,), "mark", "relation",
                quantities={"height_first": 1.0, "height_second": 0.0}),
            ask("higher", "Is the dog [0] as high?", "dog", ("cat", "dog"), (dog,), "mark", "relation",
                quantities={"height_first": 0.0, "height_second": 1.0}))))
    return records


def tiny_texts():
    """What is asked and answered in `tiny_records`."""
    return [text for record in tiny_records("train", 16) for q in record.questions for turn in q.turns
            for text in ("\n" + turn[0], turn[1])]


def random_params(config):
    """Parameters of a model, of a size at which every one of them changes the answers."""
    from flax.traverse_util import flatten_dict, unflatten_dict

    from spatialllm_jax.models.spatialllm import abstract_params

    rng = np.random.default_rng(0)
    return unflatten_dict({path: (rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[-2] if leaf.ndim > 1 else 25))
                           .astype(np.float32) for path, leaf in flatten_dict(abstract_params(config)).items()})


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    """Folder of a dataset of 16 train and 6 test pictures of 24 x 20 pixels; no OpenGL needed."""
    from spatialllm_jax.data.storage import write_dataset

    folder = tmp_path_factory.mktemp("tiny") / "data"
    write_dataset(folder, "hand", {"train": tiny_records("train", 16), "test": tiny_records("test", 6)})
    return str(folder)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A tokenizer trained on the tiny dataset's texts."""
    from spatialllm_jax.data import tokenizer

    return tokenizer.train(tiny_texts(), 512)
