"""A LLaVA file with everything such files hold: pictures, texts alone, one turn and many."""

import json

import numpy as np
import pytest
from PIL import Image

PICTURES, TEXTS = 24, 6
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="session")
def llava_entries():
    """24 samples with a picture of their own and 6 without, of one to four turns."""
    entries = []
    for index in range(PICTURES):
        colour = COLOURS[index % 3]
        turns = [("<image>\nWhat colour is the wall?", colour), ("What is this?", "a wall"),
                 ("Describe the picture.", f"a {colour} wall"), ("How far is the cat?", f"{1 + index % 4} metres")]
        entries.append({"id": f"p{index}", "image": f"walls/{index}.png",
                        "conversations": conversation(turns[:1 + index % 4])})
    for index in range(TEXTS):
        turns = [("Which is closer, the cat or the dog?", "the cat")] * (1 + index % 3)
        entries.insert(4 * index, {"id": f"t{index}", "conversations": conversation(turns)})
    return entries


def conversation(turns):
    return [{"from": who, "value": said} for turn in turns for who, said in zip(("human", "gpt"), turn, strict=True)]


def _write(folder, entries):
    (folder / "walls").mkdir(parents=True)
    for index in range(PICTURES):
        Image.fromarray(np.full((12, 16, 3), (90, 40, index), np.uint8)).save(folder / f"walls/{index}.png")
    (folder / "mix.json").write_text(json.dumps(entries))
    return str(folder / "mix.json")


@pytest.fixture(scope="session")
def write_llava_folder():
    """(folder, entries) -> path of the JSON, its pictures beside it: plain, the blue value of `walls/7.png` being 7."""
    return _write


@pytest.fixture(scope="session")
def llava_file(tmp_path_factory, llava_entries):
    """Path of the JSON."""
    return _write(tmp_path_factory.mktemp("llava"), llava_entries)
