"""Spatial457 (Wang et al. 2025): rendered scenes, seven question types on five levels, free short answers."""

from __future__ import annotations

from collections.abc import Iterator

from spatialllm_jax.evaluation import quantities
from spatialllm_jax.evaluation.benchmarks.base import Benchmark, Source, made_of
from spatialllm_jax.evaluation.benchmarks.files import BadRow, Row, find_files, image_id, read_rows
from spatialllm_jax.evaluation.items import Item, Skipped

LEVELS = {
    "L1_single": "the objects", "L2_objects": "multiple objects",
    "L3_2d_spatial": "multiple objects and their spatial relationship from 2D projected camera view",
    "L4_occ": "multiple objects and their occlusion relationships",
    "L4_pose": "multiple objects and their facing direction in 3D space from the camera view",
    "L5_6d_spatial": "multiple objects and their spatial relationship from objects’ perspective in 3D space",
    "L5_collision": "multiple objects and their potential collision given the assumption of moving direction in 3D "
                    "space",
}
_CHOICES = ", ".join(word.capitalize() for kind in ("size", "shape", "colour", "direction")
                     for word in quantities.VOCABULARY[kind])
# The prompt of the benchmark's own tool (VLMEvalKit); its wording is part of the benchmark.
_BEFORE = ("You are an intelligent chatbot designed to answer questions based on an image. Your task is to analyze the "
           "images, identify attributes of {}, and then determine the answer to the question.\n")
_AFTER = (
    "First, you should identify the related objects refered in the questions, including their shape, color, size; then "
    "add a brief reasoning process about the questions. Each object in the image has a shape (e.g., 'airliner'), a "
    "size (only can be 'small' or 'large'), a color (e.g. 'blue'). The size of the object is either 'small' or "
    "'large'. The color of the object is one of the following: 'gray', 'blue', 'purple', 'brown', 'green', 'cyan', "
    "'red', 'yellow'. The direction of the object is one of the following: 'left', 'right', 'front', 'back'.\n\n"
    "Second, give the answer based on the reasoning process. The answer should only be (1) a phrase chosen from the "
    f"following options: {_CHOICES}, or (2) an integer [0-10] when asked for 'How many' or 'What is the number of', or "
    "(3) 'Yes' or 'No' when asked for 'Is there'. If you think there are no possible answers or the question is not "
    "clear, choose the best answer that fits the question.\n\nWrite your response into this json template: "
    "{'Reasoning': '<your reasons>', 'Answer': '<Your answer>'}")


def item(row: Row) -> Item:
    """A row of VLMEvalKit's `Spatial457.tsv`."""
    level = row.text("category")
    if level not in LEVELS:
        raise BadRow(f"category {level!r} is none of {', '.join(LEVELS)}")
    question, answer = row.text("question"), row.text("answer").lower()
    answer = {"true": "yes", "false": "no"}.get(answer, answer)
    image = row.picture("image")
    kinds = [words for words in quantities.VOCABULARY.values() if answer in words]
    return Item(row.text("index"), image_id(image), image, question, "phrase", answer,
                published=f"{_BEFORE.format(LEVELS[level])}\n{question}\n{_AFTER}", type=level, group=level[:2],
                chance=1 / len(kinds[0]) if kinds else 0.0)


def items(source: Source) -> Iterator[Item | Skipped]:
    """The TSV's rows, or those of the authors' `questions/*.json` with `images/`."""
    files = find_files(source.path, ("Spatial457*.tsv", "*.tsv", "questions/*.json", "*.json"))
    own = files[0].suffix == ".json"
    columns = ("image_filename", "question", "answer", "question_index") if own else (
        "index", "image", "question", "answer", "category")
    images = source.images or (files[0].parent.parent / "images" if own else None)
    yield from made_of(read_rows(files, columns, images), _own_item if own else item, source.limit)


def _own_item(row: Row) -> Item:
    """An entry of `questions/LEVEL.json`, whose name is the level."""
    level = row.where.split(" ")[0].removesuffix(".json")
    return item(Row(row.where, {"index": f"{level}/{row.text('question_index')}", "category": level,
                                "image": row.text("image_filename"), "question": row.text("question"),
                                "answer": row.text("answer")}, row.folders))


BENCHMARKS = (Benchmark("spatial457", "Spatial457", items=items, max_new_tokens=512),)
