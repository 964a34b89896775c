"""Every benchmark from small files of its published form, and its published score by hand."""

import base64
import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import benchmarks, predictions, rules
from spatialllm_jax.evaluation.benchmarks import Source
from spatialllm_jax.evaluation.benchmarks.files import image_id
from spatialllm_jax.evaluation.items import Item, Skipped, rotations
from spatialllm_jax.evaluation.tally import tally, with_headline


def png(shade=0, size=(24, 20)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 90, 120)).save(buffer, "PNG")
    return buffer.getvalue()


def b64(shade=0):
    return base64.b64encode(png(shade)).decode()


def write_tsv(path, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read(name, path, **kwargs):
    """Items and skipped rows of a benchmark."""
    found = list(benchmarks.items_of(benchmarks.get(name), Source(path, **kwargs)))
    return [x for x in found if isinstance(x, Item)], [x for x in found if isinstance(x, Skipped)]


def scores(name, items, said):
    """The score tree when `said` are a model's answers."""
    lines = [json.loads(json.dumps(predictions.line_of(item, text))) for item, text in zip(items, said, strict=True)]
    return with_headline(tally(lines), lines, benchmarks.get(name).headline)


DSR = [("AAAA1111", "cat", "dog", "A", 1), ("AAAA1111-1", "dog", "cat", "B", 1),
       ("AAAA1111-flip", "cat", "dog", "B", 2), ("AAAA1111-flip-1", "dog", "cat", "A", 2),
       ("BBBB2222", "yes", "no", "A", 3), ("BBBB2222-1", "no", "yes", "B", 3)]


def write_3dsrbench(folder):
    kinds = {"A": "location_next_to", "B": "height_higher"}
    return write_tsv(folder / "3dsrbench_v1_vlmevalkit_circular.tsv", [
        {"index": k, "qid": qid, "image": b64(shade), "question": "Which one?", "A": a, "B": b, "C": "", "D": "",
         "answer": answer, "category": kinds[qid[0]]} for k, (qid, a, b, answer, shade) in enumerate(DSR)])


def test_3dsrbench(tmp_path):
    items, skipped = read("3dsrbench", write_3dsrbench(tmp_path))
    assert not skipped and [item.id for item in items] == [qid for qid, *_ in DSR]
    assert items[0].prompt == ("Question: Which one?\nOptions:\nA. cat\nB. dog\n"
                               "Please select the correct answer from the options above.")
    assert [item.circle for item in items] == ["AAAA1111"] * 2 + ["AAAA1111-flip"] * 2 + ["BBBB2222"] * 2
    assert [item.flip for item in items] == ["AAAA1111", "AAAA1111-1"] * 2 + ["BBBB2222", "BBBB2222-1"]
    assert {item.cluster for item in items} == {"AAAA1111", "BBBB2222"} and items[0].image_id == items[1].image_id
    assert [item.group for item in items] == ["location"] * 4 + ["height"] * 2
    # Wrong in one rotation of the mirrored question alone; all of the second question is right.
    tree = scores("3dsrbench", items, ["A", "B. cat", "B", "(B)", "A", "no, B"])
    assert tree["overall"]["acc"] == pytest.approx(4 / 6)      # "no, B" chooses two
    tree = scores("3dsrbench", items, ["A", "B. cat", "B", "(B)", "A", "B"])
    assert tree["overall"]["acc"] == pytest.approx(5 / 6)
    variants = {name: (found["overall"]["acc"], found["overall"]["n"]) for name, found in tree["variants"].items()}
    assert variants == {"circular": (pytest.approx(2 / 3), 3), "flip": (pytest.approx(3 / 4), 4),
                        "flip_circular": (pytest.approx(1 / 2), 2)}
    assert tree["variants"]["flip_circular"]["by_group"]["height"]["acc"] == 1
    assert tree["variants"]["circular"]["overall"]["chance"] == pytest.approx(1 / 4)
    assert tree["variants"]["flip_circular"]["overall"]["chance"] == pytest.approx((1 / 16 + 1 / 4) / 2)


CV = [("0", "2D", "Count", "ADE20K", ["3", "2"], "(A)"), ("1", "2D", "Relation", "ADE20K", ["left", "right"], "(B)"),
      ("2", "2D", "Count", "COCO", ["1", "0"], "(A)"), ("3", "3D", "Depth", "Omni3D", ["desk", "lamp"], "(A)"),
      ("4", "3D", "Distance", "Omni3D", ["sofa", "rug"], "(B)"), ("5", "3D", "Depth", "Omni3D", ["bed", "tv"], "(A)"),
      ("6", "3D", "Depth", "Omni3D", ["sink", "bin"], "(B)")]


def cv_rows():
    return [{"idx": int(idx), "type": kind, "task": task, "source": source, "question": "Which?", "choices": choices,
             "answer": answer,
             "prompt": f"Which? Select from the following choices.\n(A) {choices[0]}\n(B) {choices[1]}"}
            for idx, kind, task, source, choices, answer in CV]


def test_cv_bench_from_parquet_and_from_json_lines(tmp_path):
    for kind in ("2D", "3D"):       # as the hub has them now
        write_parquet(tmp_path / "pq" / f"test_{kind.lower()}.parquet", [
            {**row, "image": {"bytes": png(k), "path": None}}
            for k, row in enumerate(cv_rows()) if row["type"] == kind])
    (tmp_path / "raw" / "img" / "2D").mkdir(parents=True)
    (tmp_path / "raw" / "img" / "2D" / "a.png").write_bytes(png())
    lines = [json.dumps({**row, "filename": "img/2D/a.png"}) + "\n" for row in cv_rows()]
    shutil.copytree(tmp_path / "raw", tmp_path / "parts")
    (tmp_path / "raw" / "test.jsonl").write_text("".join(lines))
    for kind, part in (("2d", lines[:3]), ("3d", lines[3:])):
        (tmp_path / "parts" / f"test_{kind}.jsonl").write_text("".join(part))
    for folder in ("pq", "raw", "parts"):
        items, skipped = read("cv_bench", tmp_path / folder)
        assert not skipped and len(items) == 7
        assert items[0].prompt == cv_rows()[0]["prompt"] == rotations(items[0])[0].prompt
        # ADE20K 1 of 2, COCO 1 of 1, Omni3D 1 of 4.
        said = ["(A) 3", "(A)", "There is 1 of them.", "A", "the sofa", "I cannot tell.", "A"]
        tree = scores("cv_bench", items, said)
        assert tree["headline"] == {"2D": pytest.approx(0.75), "3D": pytest.approx(0.25), "overall": pytest.approx(0.5)}
        assert tree["overall"]["acc"] == pytest.approx(3 / 7) and tree["overall"]["parse_failures"] == 1
        assert tree["by_type"]["depth"]["n"] == 3 and tree["by_group"]["2D"]["n"] == 3
    assert [item.id for item in read("cv_bench_3d", tmp_path / "pq")[0]] == ["3", "4", "5", "6"]
    assert len(read("cv_bench_2d", tmp_path / "pq")[0]) == 3
    only = scores("cv_bench_3d", read("cv_bench_3d", tmp_path / "pq")[0], ["A", "B", "A", "A"])
    assert only["headline"] == {"2D": None, "3D": 0.75, "overall": None}


def test_blink_relative_depth(tmp_path):
    rows = [{"idx": f"val_Relative_Depth_{k}", "question": "Which point is closer?", "sub_task": "Relative_Depth",
             "choices": ["A is closer", "B is closer"], "answer": answer, "image_1": {"bytes": png(k), "path": None},
             "image_2": None, "prompt": "Which point is closer?\n(A) A is closer\n(B) B is closer"}
            for k, answer in enumerate(("(A)", "(B)", "hidden"))]
    write_parquet(tmp_path / "Relative_Depth" / "val-00000-of-00001.parquet", rows)
    items, skipped = read("blink_depth", tmp_path)
    assert len(items) == 2 and "answer is hidden" in skipped[0].why and "row 2" in skipped[0].where
    assert scores("blink_depth", items, ["(A) A is closer", "A is closer"])["overall"]["acc"] == 0.5


def rgpt_entry(identity, category, question, reference, kind="qualitative", **changes):
    return {"id": identity, "text_q": question, "qa_info": {"type": kind, "category": category},
            "image_info": {"file_path": "a.png", "width": 24, "height": 20}, "bbox": [[6, 5, 12, 10], [-3, 0, 24, 25]],
            "conversations": [{"from": "human", "value": "<mask>?"}, {"from": "gpt", "value": reference}], **changes}


RGPT = [
    rgpt_entry("q0", "tall_predicate", "Is Region [0] taller than Region [1]?", "In fact, Region [0] may be shorter."),
    rgpt_entry("q1", "behind_predicate", "Is Region [0] behind Region [1]?", "That is True."),
    rgpt_entry("q2", "left_choice", "Which is more to the left, Region [0] or Region [1]?",
               "Region [1] is more to the left."),
    rgpt_entry("n0", "distance_data", "How far is Region [0] from Region [1]?", "They are 2.0 meters apart.",
               "quantitative"),
    rgpt_entry("n1", "width_data", "How wide is Region [0]?", "10.0 inches", "quantitative"),
    rgpt_entry("n2", "direction", "If you are at Region [0], where will you find Region [1]?",
               "Region [0] will find Region [1] around the 12 o'clock direction.", "quantitative"),
    rgpt_entry("n3", "height_data", "How tall is Region [1]?", "1 meter", "quantitative"),
]


def write_spatialrgpt(folder, entries=RGPT):
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "a.png").write_bytes(png())
    (folder / "SpatialRGPT-Bench_v1.json").write_text(json.dumps(entries))
    return folder


def test_spatialrgpt_bench(tmp_path):
    items, skipped = read("spatialrgpt", write_spatialrgpt(tmp_path))
    assert not skipped
    assert [item.rule for item in items] == ["claim", "claim", "choice", "metres", "metres", "clock", "metres"]
    assert [item.answer for item in items] == [1, 0, 1, 2.0, pytest.approx(0.254), 12, 1.0]
    assert [mark.label for mark in items[0].marks] == ["0", "1"]
    assert items[0].marks[0].bbox == (0.25, 0.25, 0.5, 0.5) and items[0].marks[1].bbox == (0.0, 0.0, 1.0, 1.0)
    assert items[0].type == "tall/short" and items[2].type == "left/right" and items[3].type == "distance"
    # The parquet file has the picture within, and text where the JSON has lists and records.
    rows = [{"image": {"bytes": png(), "path": "x.png"}, **{key: str(value) for key, value in entry.items()}}
            for entry in RGPT]
    write_parquet(tmp_path / "hub" / "data" / "val-00000-of-00001.parquet", rows)
    assert read("spatialrgpt", tmp_path / "hub") == (items, [])
    # Within a quarter (2.5 of 2.0), outside it (20 cm of 25.4), one hour over midnight, no unit.
    said = ["No, it is shorter.", "In fact, it is in front.", "Region [1].", "2.5 meters", "19 cm", "11 o'clock",
            "about 1"]
    tree = scores("spatialrgpt", items, said)
    assert tree["headline"]["qualitative"] == pytest.approx(2 / 3)
    assert tree["headline"]["quantitative"] == pytest.approx(2 / 4)
    assert tree["headline"]["mean error of lengths"] == pytest.approx((0.25 + (0.254 - 0.19) / 0.254) / 2)
    assert tree["overall"]["parse_failures"] == 1
    assert tree["by_group"]["qualitative"]["chance"] == 0.5
    assert tree["by_group"]["quantitative"]["chance"] == pytest.approx(0.25 / 4)
    odd = [rgpt_entry("x", "distance_data", "How far?", "quite far", "quantitative"), {"id": "y"},
           rgpt_entry("z", "smell_data", "?", "1 m", "quantitative")]
    items, skipped = read("spatialrgpt", write_spatialrgpt(tmp_path, odd))
    assert not items and [s.where for s in skipped] == [f"SpatialRGPT-Bench_v1.json entry {k}" for k in range(3)]
    for found, why in zip(skipped, ("cannot be read by rule", "'text_q'", "smell"), strict=True):
        assert why in found.why


@pytest.mark.parametrize("hour, said, right", [
    (12, 1, True), (12, 11, True), (1, 12, True), (6, 8, False), (3, 9, False)])
def test_one_hour_either_side(hour, said, right):
    assert (rules.hours_apart(hour, said) <= 1) is right


def test_spatial457_from_tsv_and_from_the_authors_json(tmp_path):
    rows = [("L1_single", "What color is the bus?", "Red"), ("L5_collision", "How many?", "3"),
            ("L4_occ", "Is there a suv?", "No")]
    tsv = write_tsv(tmp_path / "Spatial457.tsv", [
        {"index": k, "image": b64(k), "question": question, "answer": answer, "category": level}
        for k, (level, question, answer) in enumerate(rows)])
    (tmp_path / "own" / "questions").mkdir(parents=True)
    (tmp_path / "own" / "images").mkdir()
    (tmp_path / "own" / "images" / "s.png").write_bytes(png())
    for level, question, answer in rows:
        (tmp_path / "own" / "questions" / f"{level}.json").write_text(json.dumps([{
            "image_filename": "s.png", "question": question, "answer": False if answer == "No" else answer,
            "question_index": 7, "program": []}]))
    said = {"L1_single": "{'Reasoning': 'it is red', 'Answer': 'red'}", "L5_collision": "{'Answer': 'four'}",
            "L4_occ": "There is none that I can see."}
    for path in (tsv, tmp_path / "own"):
        items, skipped = read("spatial457", path)
        assert not skipped and len(items) == 3 and items[0].prompt.count("What color is the bus?") == 1
        tree = scores("spatial457", items, [said[item.type] for item in items])
        assert tree["overall"]["acc"] == pytest.approx(1 / 3) and tree["overall"]["parse_failures"] == 1
        assert {name: cell["chance"] for name, cell in tree["by_type"].items()} == {
            "L1_single": 1 / 8, "L4_occ": 1 / 2, "L5_collision": 0.0}
        assert set(tree["by_group"]) == {"L1", "L4", "L5"}
    assert [item.id for item in read("spatial457", tmp_path / "own", limit=1)[0]] == ["L1_single/7"]


def test_embspatial(tmp_path):
    sides = ["above", "below", "left", "right"]
    entries = [{"question_id": f"mp3d_{k}", "question": "How are the bed and the lamp?", "relation": relation,
                "answer": k, "answer_options": sides, "image": b64(k), "data_source": "mp3d"}
               for k, relation in ((0, "above"), (2, "left"), (4, "close"))]
    (tmp_path / "embspatial_bench.json").write_text(json.dumps(entries))
    items, skipped = read("embspatial", tmp_path)
    assert len(items) == 2 and "answer 4 is none of its 4 options" in skipped[0].why
    assert items[0].prompt.endswith("D. right\nAnswer with the option's letter from the given choices directly.")
    tree = scores("embspatial", items, ["A", "It is left."])
    assert tree["overall"]["acc"] == 1 and set(tree["by_type"]) == {"above", "left"}


def test_vsr(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(png())
    rows = [{"image": "1.jpg", "caption": "The cat is in front of the dog.", "label": 1, "relation": "in front of"},
            {"image": "1.jpg", "caption": "The cat is far from the dog.", "label": 0, "relation": "far from"},
            {"image": "2.jpg", "caption": "The cat is on the dog.", "label": 0, "relation": "on"},
            {"image": "1.jpg", "caption": "The cat is on the dog.", "label": 2, "relation": "on"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items, skipped = read("vsr", tmp_path)
    assert [item.group for item in items] == ["projective", "proximity"] and [item.answer for item in items] == [0, 1]
    assert "'2.jpg' is not in" in skipped[0].why and "label 2" in skipped[1].why
    tree = scores("vsr", items, ["Yes.", "yes"])
    assert tree["overall"]["acc"] == 0.5
    assert tree["bias"] == {"options": {"No": [0, 1], "Yes": [2, 1]}, "n": 2, "distance": 0.5}


def test_any_vlmevalkit_tsv(tmp_path):
    rows = [{"index": 3, "image": b64(1), "question": "Which?", "A": "cat", "B": "dog", "C": "cow", "answer": "C",
             "category": "animal", "l2-category": "nature"},
            {"index": 4, "image": "3", "question": "Which now?", "A": "cat", "B": "dog", "C": "", "answer": "A",
             "category": "animal", "hint": "Think."},
            {"index": 1000003, "image": "3", "question": "Which?", "A": "dog", "B": "cow", "C": "cat", "answer": "B",
             "category": "animal", "l2-category": "nature"},
            {"index": 5, "image": b64(2), "question": "Is it? Please answer yes or no.", "answer": "No"},
            {"index": 6, "image": b64(2), "question": "What is it?", "answer": "A chair"}]
    items, skipped = read("tsv", write_tsv(tmp_path / "any.tsv", rows))
    assert not skipped and [item.rule for item in items] == ["choice"] * 3 + ["yes_no", "exact"]
    assert items[0].image == items[1].image == items[2].image == png(1)
    assert items[1].prompt.startswith("Hint: Think.\nQuestion: Which now?\nOptions:\nA. cat\nB. dog\nPlease")
    tree = scores("tsv", items, ["C", "cat", "C", "no", "a chair."])
    assert tree["overall"]["acc"] == 4 / 5 and tree["by_group"]["nature"]["acc"] == 0.5
    # Questions 3, 4, 5 and 6; 3 is wrong under one of its rotations.
    assert tree["variants"]["circular"]["overall"]["acc"] == 3 / 4


def test_tsv_with_several_pictures_per_question(tmp_path):
    """A list as VLMEvalKit writes it, in front of the question or where MMMU and MUIRBench name its pictures."""
    three = str([b64(1), b64(2), b64(3)])
    two = {"A": "cat", "B": "dog", "answer": "B"}
    rows = [{"index": 1, "image": three, "question": "Which of them?", **two},
            {"index": 2, "image": "1", "question": "Is <image 3> like <image 1>, or <image 3>?", **two},
            {"index": 3, "image": three, "question": "Of <image>, is it", "A": "<image>", "B": "<image>",
             "answer": "A"},
            {"index": 4, "image": three, "question": "See <image 2>.", "answer": "yes"},
            {"index": 5, "image": str([b64(4)]), "question": "What is in <image 1>?", "answer": "a cat"},
            {"index": 6, "image": three, "question": "Of <image> and <image>?", "answer": "a cat"},
            {"index": 7, "image": three, "question": "See <image 4>.", "answer": "a cat"},
            {"index": 8, "image": "[" + 70 * "x" + "]", "question": "What?", "answer": "a cat"},
            {"index": 9, "image": str([b64(1), "gone.png"]), "question": "What?", "answer": "a cat"},
            {"index": 10, "image": str([[]] * 40), "question": "What?", "answer": "a cat"}]
    items, skipped = read("tsv", write_tsv(tmp_path / "any.tsv", rows))

    def shown(item):
        assert all(name == image_id(image) for name, image in item.pictures)
        return [image for _, image in item.pictures]

    assert [len(item.more) for item in items] == [2, 2, 2, 2, 0]
    assert [shown(item) for item in items] == [[png(k) for k in ks] for ks in (
        (1, 2, 3), (3, 1, 3), (1, 2, 3), (2,), (4,))]
    assert items[0].text == items[0].prompt and "<image" not in items[0].text
    assert items[1].text.startswith("Question: Is <image> like <image>, or <image>?\n")
    assert items[2].text.count("<image>") == 3 and "B. <image 3>" in items[2].prompt
    turned = rotations(items[2])[1]     # its pictures go with their options
    assert turned.options == ("<image 3>", "<image 2>") and shown(turned) == [png(1), png(3), png(2)]
    assert items[4].text == "What is in <image 1>?"     # one picture stands in front
    lines = [predictions.line_of(item, "A") for item in items]
    assert lines[1]["images"] == [image_id(png(k)) for k in (3, 1, 3)] and "images" not in lines[4]
    for found, (index, why) in zip(skipped, ((6, "places for 2 pictures, and it has 3"), (7, "places for 4"),
                                             (8, "no list of pictures"), (9, "'gone.png' is not in"),
                                             (10, "neither base64")), strict=True):
        assert found.where == f"any.tsv line {index + 1}" and why in found.why


def test_tsv_with_paths_of_pictures(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.png").write_bytes(png("ab".index(name)))
    rows = [{"index": k, "image_path": path, "question": "What?", "answer": "a cat"} for k, path in enumerate((
        "a.png", "['b.png', 'a.png']", "/etc/passwd.png"))]
    items, skipped = read("tsv", write_tsv(tmp_path / "any.tsv", rows))
    assert [[image for _, image in item.pictures] for item in items] == [[png(0)], [png(1), png(0)]]
    assert "leaves the benchmark's folder" in skipped[0].why
    with pytest.raises(UserError, match="no column 'image or image_path'"):
        read("tsv", write_tsv(tmp_path / "none.tsv", [{"index": 1, "question": "What?", "answer": "a"}]))


def test_llava_questions_about_several_pictures(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png("ab".index(name)))
    rows = [{"question_id": k, "image": ["a.png", "b.png"], "text": text, "answer": "yes"} for k, text in enumerate((
        "Are <image>\nand <image> alike?", "Are they alike?", "Is <image>?"))]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items, skipped = read("llava", tmp_path)
    assert [item.text for item in items] == ["Are <image>\nand <image> alike?", "Are they alike?"]
    assert all([image for _, image in item.pictures] == [png(0), png(1)] for item in items)
    assert "places for 1 pictures, and it has 2" in skipped[0].why


def test_llava_questions_with_and_without_answers(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rows = [{"question_id": 1, "image": "a.png", "text": "Is there a cat?\nAnswer yes or no.", "label": "yes"},
            {"question_id": 2, "image": "a.png", "text": "<image>\nWhat is it?", "answer": "dog"},
            {"question_id": 3, "image": "a.png", "text": "Describe it."}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    items, skipped = read("llava", tmp_path)
    assert len(skipped) == 1 and skipped[0].where == "q.jsonl line 4" and "no JSON" in skipped[0].why
    tree = scores("llava", items, ["Yes, there is.", "Dog.", "A fine picture."])
    assert tree["overall"]["n"] == 2 and tree["overall"]["acc"] == 1 and tree["unscored"] == 1
    assert items[1].prompt == "What is it?"


def test_spatial_vqa_dataset(tiny_dataset):
    items, skipped = read("spatial_vqa", Path(tiny_dataset), limit=2)
    assert not skipped and {item.type for item in items} == {"closer_to_camera", "higher"}
    assert [mark.label for mark in items[1].marks] == ["0"] and items[0].candidates == ("cat", "dog")


def test_rotations_ask_a_question_from_every_side(tmp_path):
    row = {**cv_rows()[1], "image": {"bytes": png(), "path": ""}}
    item = read("cv_bench", write_parquet(tmp_path / "test.parquet", [row]))[0][0]
    first, second = rotations(item)
    assert first.circle == second.circle == first.id == "1" and second.id == "1-1"
    assert (first.answer, second.answer, second.options) == (1, 0, ("right", "left"))
    assert second.prompt == "Which? Select from the following choices.\n(A) right\n(B) left"
    tree = scores("cv_bench", [first, second], ["B", "B"])     # a model that always says B
    assert tree["overall"]["acc"] == 0.5 and tree["variants"]["circular"]["overall"]["acc"] == 0
    assert tree["bias"]["distance"] == 0.5


@pytest.mark.parametrize("change, why", [
    ({"question": " "}, "'question' is empty"), ({"A": "", "B": ""}, "options"), ({"B": ""}, "options"),
    ({"answer": "E"}, "none of its"), ({"image": "not base64!"}, "neither base64 nor"),
    ({"answer": ""}, "'answer' is empty"), ({"image": ""}, "'image' is empty"),
    ({"category": "smell"}, "smell"), ({"image": "missing.png"}, "missing.png"),
    ({"image": "../../etc/passwd.png"}, "leaves"),
])
def test_unfit_rows_are_named_and_skipped(tmp_path, change, why):
    rows = [{"index": k, "qid": f"CCCC333{k}", "image": b64(k), "question": "Which one?", "A": "cat", "B": "dog",
             "C": "cow", "D": "", "answer": "A", "category": "height_higher", **(change if k == 1 else {})}
            for k in range(3)]
    items, skipped = read("3dsrbench", write_tsv(tmp_path / "x.tsv", rows))
    assert len(items) == 2 and len(skipped) == 1
    assert skipped[0].where == "x.tsv line 3" and why in skipped[0].why


@pytest.mark.parametrize("name, file, content, why", [
    ("3dsrbench", "x.tsv", "index\timage\tquestion\n1\ta\tb\n", "no column 'qid'"),
    ("tsv", "x.tsv", "", "holds no rows"),
    ("tsv", "x.tsv", "index\timage\tquestion\tanswer\n", "holds no rows"), ("vsr", "x.jsonl", "", "holds no rows"),
    ("embspatial", "embspatial_bench.json", "[]", "holds no rows"), ("embspatial", "e.json", "{", "is no JSON"),
    ("cv_bench", "test.parquet", "PAR1", "is no parquet file"), ("vsr", "x.txt", "a", "ends in none of"),
    ("tsv", "x.tsv", b"index\timage\tquestion\tanswer\n1\t\xff\xfe\tq\ta\n", "cannot be read"),
])
def test_files_that_are_not_the_benchmarks(tmp_path, name, file, content, why):
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=why) as found:
        read(name, path)
    assert str(path) in str(found.value)


def test_missing_files_and_unknown_benchmarks(tmp_path, monkeypatch):
    for path, why in ((tmp_path / "no.tsv", "does not exist"), (tmp_path, "holds no test.jsonl or")):
        with pytest.raises(UserError, match=why):
            read("vsr", path)
    with pytest.raises(UserError, match="choose from spatial_vqa, 3dsrbench"):
        benchmarks.get("4dsrbench")
    path = write_parquet(tmp_path / "test.parquet", [{"idx": 1}])
    with pytest.raises(UserError, match="no column 'type'"):
        read("cv_bench", path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="needs pyarrow"):
        read("cv_bench", path)


def test_the_example_in_the_docs_is_a_benchmark(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert len(code.splitlines()) <= 40
    space = {}
    exec(code, space)
    (tmp_path / "a.png").write_bytes(png())
    rows = [{"id": k, "picture": "a.png", "boxes": [[0, 0, 0.5, 1]], "options": ["cat", "dog"], "right": k,
             "scene": "room", "hard": k == 1, "draft": k == 3} for k in range(4)]
    (tmp_path / "mybench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(benchmarks.items_of(space["BENCHMARKS"][0], Source(tmp_path)))
    assert [type(entry) for entry in found] == [Item, Item, Skipped] and found[0].marks[0].label == "0"
    lines = [predictions.line_of(item, text) for item, text in zip(found[:2], ("A", "the cat"), strict=True)]
    assert space["headline"](lines) == {"hard": 0.0}


def test_every_benchmark_is_in_the_docs():
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    assert not [name for name in benchmarks.BENCHMARKS if f"`{name}`" not in text]
