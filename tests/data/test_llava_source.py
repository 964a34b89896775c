"""LLaVA JSON: random access by byte offsets, what a record becomes, and what is refused."""

import json
import pickle

import pytest

from spatialllm_jax.data import llava_source
from spatialllm_jax.data.llava_source import MalformedSample, open_llava
from spatialllm_jax.errors import UserError


def talk(*values):
    return [{"from": ("human", "gpt")[k % 2], "value": value} for k, value in enumerate(values)]


def write(folder, text, encoding="utf-8"):
    path = folder / "samples.json"
    path.write_bytes(text.encode(encoding))
    return path


def test_every_element_is_found_by_its_bytes(llava_file, llava_entries):
    entries, source = llava_entries, open_llava(llava_file)
    assert len(source) == len(entries) == 30
    for index in (0, 29, 13, -1, 5):
        record, entry = source[index], entries[index]
        turns = [turn["value"].replace("<image>", "").strip() for turn in entry["conversations"]]
        question, = record.questions
        assert [said for turn in question.turns for said in turn] == turns
        assert question.type == ("caption" if len(turns) == 2 else "what")
        assert record.has_image == ("image" in entry) and record.image == b""
        assert record.file.endswith(entry.get("image", "")) and record.image_id == entry.get("image", entry["id"])
    with pytest.raises(IndexError):
        source[30]


@pytest.mark.parametrize("chunk", [1, 3, 64, 1 << 20])
@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_chunks_and_layout_do_not_matter(tmp_path, monkeypatch, chunk, style):
    said = ['a "quoted" } ] , [ { word', "größer als 物", "back\\slash \\\" and\nbreak", ""]
    entries = [{"id": k, "conversations": talk("who?", text), "more": [[k, {"x": None}]]}
               for k, text in enumerate(said)]
    path = write(tmp_path, json.dumps(entries, **style))
    monkeypatch.setattr(llava_source, "_CHUNK", chunk)
    llava_source._offsets.cache_clear()
    source = open_llava(path)
    assert [source[k].questions[0].answer for k in range(len(source))] == [text.strip() for text in said]


def test_byte_order_mark_and_empty_list(tmp_path):
    path = write(tmp_path, "\ufeff" + json.dumps([{"conversations": talk("ä", "ö")}] * 3, ensure_ascii=False))
    assert open_llava(path)[2].questions[0].turns == (("ä", "ö"),)
    assert len(open_llava(write(tmp_path, " [ \n] "))) == 0


def test_pickled_for_workers(llava_file):
    source = open_llava(llava_file)
    first = source[3]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3] == first and len(copy) == len(source)


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path, json.dumps([{"conversations": talk("a", "b")}]))
    assert len(open_llava(path)) == 1
    write(tmp_path, json.dumps([{"conversations": talk("a", "b")}] * 2))
    assert len(open_llava(path)) == 2


def test_what_llava_tolerates(tmp_path):
    path = write(tmp_path, json.dumps([
        {"conversations": [{"from": "gpt", "value": "hello"}, *talk("a", "b", "c")]},
        {"image": "x.jpg", "conversations": talk("what is it? <image>", "it")}]))
    source = open_llava(path)
    assert source[0].questions[0].turns == (("a", "b"),)
    assert source[1].questions[0].turns == (("what is it?", "it"),) and source[1].file == str(tmp_path / "x.jpg")


@pytest.mark.parametrize(("entry", "words"), [
    ({}, "no conversation"),
    ({"conversations": None}, "no conversation"),
    (7, "no conversation"),
    ({"conversations": [{"from": "human"}]}, "no conversation"),
    ({"conversations": talk("alone")}, "human, gpt"),
    ({"conversations": talk("a", "b") + talk("c", "d")[::-1]}, "human, gpt"),
    ({"conversations": [{"from": "human", "value": "a"}] * 2}, "human, gpt"),
    ({"conversations": talk("<image> a", "b")}, "more often than it has images"),
    ({"image": "a.jpg", "conversations": talk("<image>", "b", "<image>", "c")}, "more often than it has images"),
    ({"image": ["a.jpg", "b.jpg"], "conversations": talk("a", "b")}, "one image per sample"),
    ({"image": "../secret.jpg", "conversations": talk("a", "b")}, "leaves"),
    ({"image": "a/../../b.jpg", "conversations": talk("a", "b")}, "leaves"),
    ({"image": "/etc/passwd", "conversations": talk("a", "b")}, "leaves"),
])
def test_malformed_elements_are_named(tmp_path, entry, words):
    path = write(tmp_path, json.dumps([{"conversations": talk("a", "b")}, entry]))
    source = open_llava(path)
    assert source[0].questions[0].answer == "b"         # the others are not harmed
    with pytest.raises(MalformedSample, match=f"sample 1 of .*samples.json.*{words}|{words}.*sample 1 of "):
        source[1]


@pytest.mark.parametrize(("text", "words"), [
    ("", "no JSON list from byte 0"), ("[", "no JSON list"), ('{"a": 1}', "must hold a list"),
    ('[{"a": 1}', "no JSON list from byte 0.*does not end.*cut short"),
    ('[{"a": 1} {"a": 2}]', "no JSON list from byte 9"),
    ('[{"a": 1}, {"a"', "no JSON list from byte 9.*cut short"),
])
def test_broken_files(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        open_llava(write(tmp_path, text))


def test_missing_file_and_folder(tmp_path, llava_file):
    with pytest.raises(UserError, match=r"nothing\.json does not exist"):
        open_llava(tmp_path / "nothing.json")
    with pytest.raises(UserError, match=r"image folder .*elsewhere.* does not exist"):
        open_llava(llava_file, tmp_path / "elsewhere")
    assert open_llava(llava_file, tmp_path)[1].file.startswith(str(tmp_path))
