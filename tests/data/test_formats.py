"""LLaVA JSON and VLMEvalKit TSV: what is written is what is read."""

import base64
import csv
import dataclasses
import json

import numpy as np
import pytest

from spatialllm_jax.data import formats
from spatialllm_jax.data.images import decode
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Question, Region


def question(k, style="name", labels=("0", "1"), shift=0.0, letter=False):
    lefts = [0.1 + shift + 0.3 * i for i in range(len(labels))]
    regions = tuple(Region(x, (left, 0.2, left + 0.2, 0.9), "car") for x, left in zip(labels, lefts, strict=True))
    text, options = f"Which {k}?", ("the first", "the second")
    if letter:
        text, options = f"Which {k}?\nA. the first\nB. the second\nAnswer with a letter.", ("A", "B")
    kind = ("higher", "same_direction", "on_which_side", "left_right", "where")[k]
    return Question(f"q{k}", "im", kind, "relation", "test", ((text, options[k % 2]),), regions, style,
                    options, k % 2, {}, 1.0)  # fmt: skip


def record(*questions):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((80, 100, 3), 128, np.uint8)).save(buffer, "PNG")
    return ImageRecord("im", buffer.getvalue(), 100, 80, questions)


def test_grouping():
    plain, marked = [question(0), question(1)], [question(2, "mark"), question(3, "mark", shift=0.05)]
    groups = formats.group_questions([*plain, *marked, question(4, "mark")])
    assert [[q.id for q in members] for _, members in groups] == [["q0", "q1"], ["q2", "q4"], ["q3"]]
    assert [len(marks) for marks, _ in groups] == [0, 2, 2]


def test_a_conversation_asks_once_about_a_thing():
    """The same type and objects in another form, or named the other way round, go to another conversation."""
    first = question(0, "mark")
    turned = dataclasses.replace(first, id="turned", form="yes_no", regions=first.regions[::-1])
    other = question(1, "mark")
    groups = formats.group_questions([first, turned, other])
    assert [[q.id for q in members] for _, members in groups] == [["q0", "q1"], ["turned"]]
    sided = dataclasses.replace(first, type="on_which_side")
    back = dataclasses.replace(sided, id="back", regions=sided.regions[::-1])  # whose side matters here
    assert [len(members) for _, members in formats.group_questions([sided, back])] == [2]


def test_turns_per_conversation():
    marked = [question(k, "mark") for k in range(5)]
    sizes = [len(members) for _, members in formats.group_questions(marked, max_turns=2)]
    assert sizes == [2, 2, 1]
    assert [len(members) for _, members in formats.group_questions(marked)] == [5]


def test_llava_round_trip(tmp_path):
    path = formats.write_llava(tmp_path, "train", [record(question(0), question(1), question(2, "mark"))])
    entries = json.loads(path.read_text())
    assert [t["from"] for t in entries[0]["conversations"]] == ["human", "gpt"] * 2
    assert entries[0]["conversations"][0]["value"] == "<image>\nWhich 0?"
    assert entries[0]["conversations"][2]["value"] == "Which 1?"
    back = list(formats.read_llava(path))
    assert back[0].questions[0].turns == (("Which 0?", "the first"), ("Which 1?", "the second"))
    assert back[0].image == record().image and (back[0].width, back[0].height) == (100, 80)
    assert (decode(back[0].image) == 128).all()
    assert (decode(back[1].image) != 128).any()  # marks are drawn on the marked questions' picture


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not JSON"),
        ("{}", "must hold a list"),
        ('[{"image": "a.png"}]', "sample 0 .* broken"),
        ('[{"image": "a.png", "conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]}]',
         "sample 0 .* broken"),
        ('[{"image": "none.png", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]',
         "none.png .* missing"),
        ('[{"image": "../../x", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]',
         "leaves"),
    ],
)  # fmt: skip
def test_bad_llava(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        list(formats.read_llava(path))


def test_text_only_samples_are_left_out(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"id": 1, "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]')
    assert list(formats.read_llava(path)) == []


def test_tsv_round_trip(tmp_path):
    path = tmp_path / "bench.tsv"
    questions = (question(0), question(1), question(2, "mark"), question(3, letter=True))
    assert formats.write_tsv(path, [record(*questions)], "test") == 4
    with path.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [r["image"] for r in rows[1:3]] == ["0", "0"] and len(rows[3]["image"]) > 100
    assert rows[0]["answer"] == "A" and rows[1]["answer"] == "B" and rows[0]["l2-category"] == "spatial relationship"
    back = list(formats.read_tsv(path))
    assert [r.questions[0].id for r in back] == ["q0", "q1", "q3", "q2"]
    for found in back:
        k = int(found.questions[0].id[1])
        assert found.questions[0].text == f"Which {k}?"
        assert found.questions[0].options == ("the first", "the second")
        assert found.questions[0].answer_index == k % 2
        assert (decode(found.image) == 128).all() == (k != 2)


def test_bad_tsv(tmp_path):
    path = tmp_path / "x.tsv"
    with pytest.raises(UserError, match="does not exist"):
        list(formats.read_tsv(path))
    path.write_text("index\timage\tquestion\n")
    with pytest.raises(UserError, match="no column 'answer'"):
        list(formats.read_tsv(path))
    head = "index\timage\tquestion\tA\tB\tanswer\n"
    picture = base64.b64encode(record().image).decode()
    path.write_text(head + f"0\t{picture}\tq\tx\ty\tC\n")
    with pytest.raises(UserError, match="answer 'C' of row 0"):
        list(formats.read_tsv(path))
    path.write_text(head + "0\tzzz!\tq\tx\ty\tA\n")
    with pytest.raises(UserError, match="neither base64 nor a row"):
        list(formats.read_tsv(path))
