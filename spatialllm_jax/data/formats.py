"""Datasets for other programs: LLaVA JSON and VLMEvalKit TSV, written and read.

Drawn marks: both formats hold plain pictures, so questions of region style "mark" get pictures with the
marks drawn on. Questions whose regions agree on their labels share one picture and one conversation.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import simplejpeg

from spatialllm_jax.data.images import decode, draw_regions, image_size
from spatialllm_jax.data.llava_source import PLACEHOLDER
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.labels import subject_of
from spatialllm_jax.questions.types import Question, Region
from spatialllm_jax.questions.wording import LETTERS

_L2 = {"distance": "distance", "orientation": "orientation", "relation": "spatial relationship"}


def group_questions(
    questions: Sequence[Question], max_turns: int | None = None
) -> list[tuple[tuple[Region, ...], list[Question]]]:
    """Questions in conversations: (marks to draw, questions) per picture.

    Questions without marks share one conversation, about the plain picture; a marked one joins the first whose
    labels agree with its own (same label, same box). No conversation asks twice about the same thing in other
    words or another form (`questions.labels.subject_of`): the second question starts another conversation.

    Args:
        max_turns: questions beyond this many turns start another conversation; None sets no limit.
    """
    groups: list[tuple[dict[str, Region], list[Question], set[Any]]] = []
    for question in questions:
        marks = {r.label: r for r in question.regions} if question.region_style == "mark" else {}
        subject = subject_of(question)
        for known, members, subjects in groups:
            agree = bool(known) == bool(marks)
            agree = agree and all(label not in known or known[label].bbox == r.bbox for label, r in marks.items())
            room = max_turns is None or sum(len(q.turns) for q in members) + len(question.turns) <= max_turns
            if agree and room and (subject is None or subject not in subjects):
                known.update(marks)
                members.append(question)
                subjects.add(subject)
                break
        else:
            groups.append((marks, [question], {subject}))
    return [(tuple(marks[k] for k in sorted(marks, key=_order)), members) for marks, members, _ in groups]


def _order(label: str) -> tuple[int, str]:
    """Numbers in their own order, then words."""
    return (int(label), "") if label.isdecimal() else (1 << 30, label)


def marked_image(record: ImageRecord, marks: Sequence[Region]) -> bytes:
    """The record's picture with marks drawn (JPEG, quality 95), or the original bytes without any."""
    if not marks:
        return record.image
    drawn = draw_regions(decode(record.image, record.image_id), marks)
    return simplejpeg.encode_jpeg(drawn, quality=95, colorspace="RGB", colorsubsampling="444")


def write_llava(folder: Path, split: str, records: Iterable[ImageRecord], max_turns: int | None = None) -> Path:
    """Writes `folder/<split>.json` and `folder/images/`; streams, whatever the number of records.

    Each conversation is `{id, image, conversations: [{from, value}]}` with `<image>` and a line break
    before the first human turn, and also carries `types`, which LLaVA ignores. `max_turns` as in
    `group_questions`.

    Returns:
        The path of the JSON.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.json"
    with path.open("w") as file:
        file.write("[")
        separator = "\n"
        for record in records:
            for k, (marks, members) in enumerate(group_questions(record.questions, max_turns)):
                name = _file_name(record, k if marks else None)
                target = folder / "images" / name
                if not target.exists():
                    target.write_bytes(marked_image(record, marks))
                turns: list[dict[str, str]] = []
                for question in members:
                    for user, assistant in question.turns:
                        lead = f"{PLACEHOLDER}\n" if not turns else ""
                        turns.append({"from": "human", "value": lead + user})
                        turns.append({"from": "gpt", "value": assistant})
                entry = {"id": f"{record.image_id}/{k}", "image": f"images/{name}", "conversations": turns,
                         "types": [q.type for q in members]}  # fmt: skip
                file.write(separator + json.dumps(entry))
                separator = ",\n"
        file.write("\n]\n")
    return path


def read_llava(path: Path, images: Path | None = None) -> Iterator[ImageRecord]:
    """Records from LLaVA JSON (Mix665K's layout too); text-only samples are left out.

    Args:
        images: folder that the `image` paths start from; the JSON's own by default.

    Raises:
        UserError: for a file that is not such JSON, a missing picture, or a path that leaves the folder.
    """
    root = (images or path.parent).resolve()
    try:
        entries = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a LLaVA JSON file") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); it may be cut short, fetch it again") from error
    if not isinstance(entries, list):
        raise UserError(f"{path} must hold a list of samples, as LLaVA's files do")
    for position, entry in enumerate(entries):
        try:
            if "image" not in entry:
                continue
            name, turns = entry["image"], entry["conversations"]
            key = str(entry.get("id", position))
            pairs = tuple(
                (turns[k]["value"].replace(PLACEHOLDER, "").strip(), turns[k + 1]["value"])
                for k in range(0, len(turns) - 1, 2)
            )
            if not pairs or turns[0]["from"] != "human" or turns[1]["from"] != "gpt":
                raise ValueError("no human and gpt turn")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"sample {position} of {path} is broken ({error!r}); fix or remove it") from error
        file = (root / name).resolve()
        if not file.is_relative_to(root):
            raise UserError(f"image path {name!r} of sample {key!r} leaves {root}; paths must stay inside")
        if not file.is_file():
            raise UserError(f"image {file} of sample {key!r} in {path} is missing; check the image folder")
        encoded = file.read_bytes()
        width, height = image_size(encoded, str(file))
        question = Question(id=f"{key}/0", image=key, type="caption" if len(pairs) == 1 else "what",
                            group="general", source="llava", turns=pairs)  # fmt: skip
        yield ImageRecord(key, encoded, width, height, (question,))


def write_tsv(path: Path, records: Iterable[ImageRecord], split: str) -> int:
    """Writes the multiple-choice questions as a VLMEvalKit TSV; returns their number.

    A picture that an earlier row holds is given as that row's index. Options are listed in columns A-D
    (and E, F where a type has more); the answer is a letter.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with path.open("w", newline="") as file:
        columns = ["index", "image", "question", *LETTERS[:_MOST], "answer", "category", "l2-category", "split", "id"]
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        for record in records:
            choices = [q for q in record.questions if q.answer_index is not None and len(q.options) <= _MOST]
            for marks, members in group_questions(choices):
                first = rows
                for question in members:
                    text, options = _listed(question)
                    image = base64.b64encode(marked_image(record, marks)).decode() if rows == first else str(first)
                    row: dict[str, Any] = {"index": rows, "image": image, "question": text,
                                           "category": question.type, "split": split, "id": question.id,
                                           "l2-category": _L2.get(question.group, question.group),
                                           "answer": LETTERS[question.answer_index or 0]}  # fmt: skip
                    row.update(zip(LETTERS, options, strict=False))
                    writer.writerow(row)
                    rows += 1
    return rows


_MOST = 6


def _listed(question: Question) -> tuple[str, list[str]]:
    """(question without a list of options, options). Letter-style questions list them in the text."""
    if all(len(option) == 1 for option in question.options) and "\nA. " in question.text:
        text, *lines = question.text.split("\n")
        return text, [line[3:] for line in lines if line[:1] in LETTERS and line[1:3] == ". "]
    return question.text, list(question.options)


def read_tsv(path: Path) -> Iterator[ImageRecord]:
    """Records from a VLMEvalKit TSV, one per row; questions come with their options as letters do not.

    Raises:
        UserError: for a missing file or column, a picture that cannot be decoded, or an answer that is
            none of the row's options.
    """
    csv.field_size_limit(1 << 30)
    try:
        file = path.open(newline="")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a VLMEvalKit TSV file") from None
    pictures: dict[str, bytes] = {}
    with file:
        reader = csv.DictReader(file, delimiter="\t")
        missing = {"index", "image", "question", "answer"} - set(reader.fieldnames or ())
        if missing:
            raise UserError(f"{path} has no column {sorted(missing)[0]!r}; it is not a VLMEvalKit TSV")
        for row in reader:
            index, data = row["index"], row["image"]
            if data in pictures:
                encoded = pictures[data]
            else:
                try:
                    encoded = base64.b64decode(data, validate=True)
                except ValueError as error:
                    raise UserError(f"the image of row {index} in {path} is neither base64 nor a row") from error
                pictures[index] = encoded
            width, height = image_size(encoded, f"of row {index} in {path}")
            options = [row[k] for k in LETTERS if row.get(k)]
            answer = row["answer"]
            if options and answer not in LETTERS[: len(options)]:
                raise UserError(f"answer {answer!r} of row {index} in {path} is none of its {len(options)} options")
            right = LETTERS.index(answer) if options else None
            kind = row.get("category") or "what"
            question = Question(
                id=row.get("id") or index, image=index, type=kind, group=row.get("l2-category") or "general",
                source=path.stem, turns=((row["question"], options[right] if right is not None else answer),),
                options=tuple(options), answer_index=right)  # fmt: skip
            yield ImageRecord(index, encoded, width, height, (question,))


def _file_name(record: ImageRecord, group: int | None) -> str:
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in record.image_id)
    if group is not None:
        return f"{stem}-{group}.jpg"
    return stem + (".png" if record.image[:4] == b"\x89PNG" else ".jpg")
