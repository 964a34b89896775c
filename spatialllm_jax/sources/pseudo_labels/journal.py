"""What is done survives a kill: one line per picture, appended when it is done, never changed.

    LABELS/journal.jsonl    settings, then a line per picture in the order in which they were done
    LABELS/pictures/        pictures that had to be made plain RGB
    LABELS/images           link to the folder of pictures
    LABELS/scenes.jsonl     the scenes, sorted by picture: a scene file (`sources.scene_file`), written at the end
    LABELS/log.tsv          picture, what became of it, details: every picture that gave no scene or was changed
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spatialllm_jax.errors import UserError
from spatialllm_jax.whole_files import write_whole

_FILE, _LINK, _PICTURES = "journal.jsonl", "images", "pictures"


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one picture.

    Attributes:
        name: path below the folder of pictures.
        scene: the scene as JSON text, or "".
        reason: why there is none; "" when there is one.
        detail: more about it, for the log.
        left_out: objects that were dropped, by reason.
        changes: what was done to the picture.
        encoded: the picture as it is to be kept, when it was changed; not in the journal.
    """

    name: str
    scene: str = ""
    reason: str = ""
    detail: str = ""
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    changes: tuple[str, ...] = ()
    encoded: bytes | None = None


class Journal:
    """The folder of one job; opening it goes on with what is there."""

    def __init__(self, folder: Path, images: Path, settings: Mapping[str, Any]) -> None:
        """Args:
            images: the folder of pictures.
            settings: everything the outcomes depend on, JSON-ready.

        Raises:
            UserError: when the folder holds the outcomes of other settings, is in use, or cannot be written.
        """
        self.folder = folder
        self._path = folder / _FILE
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        link, target = folder / _LINK, os.path.abspath(images)
        if link.exists() and not link.is_symlink():
            raise UserError(f"{link} is in the way of a link to the pictures; name another folder with --labels")
        head = json.dumps({"settings": settings}, sort_keys=True) + "\n"
        # Where each picture's line starts; a dict of a million offsets is small, a million scenes are not.
        self._starts: dict[str, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
        except OSError as error:
            raise UserError(f"labels cannot be written to {folder} ({error.strerror}); name another folder with "
                            "--labels") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)      # ends with this process, however it ends
        except BlockingIOError:
            raise UserError(f"another run is labelling into {folder}; wait for it, or name another folder with "
                            "--labels") from None
        # Settings under which nothing was done (a model was missing, say) bind nobody.
        if _lines(self._path) < 2:
            self._file.truncate(0)
            self._file.write(head.encode())
            self._file.flush()
        self._read(head)
        self._file.seek(0, os.SEEK_END)     # the end may have moved: a torn line is cut off
        if not link.is_symlink() or os.readlink(link) != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=True)

    def _read(self, head: str) -> None:
        with self._path.open("rb+") as file:
            if file.readline().decode(errors="replace") != head:
                raise UserError(f"{self.folder} holds labels made with other settings; name another folder with "
                                "--labels, or remove it")
            start = file.tell()
            for line in file:
                if not line.endswith(b"\n"):     # cut short by a kill: that picture is done again
                    file.truncate(start)
                    break
                try:
                    self._starts[json.loads(line)["name"]] = start
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"{self._path} is damaged at byte {start} ({error!r}); remove what follows, or "
                                    "name another folder with --labels") from error
                start += len(line)

    def __contains__(self, name: str) -> bool:
        return name in self._starts

    def add(self, outcome: Outcome) -> None:
        """Writes an outcome; its picture first, so that a line never names a picture that is not there."""
        if outcome.name in self._starts:
            return
        if outcome.encoded is not None and outcome.scene:
            write_whole(self.folder / _kept(outcome.name), outcome.encoded)
        data = {key: value for key, value in dataclasses.asdict(outcome).items() if key != "encoded" and value}
        start = self._file.tell()
        self._file.write(json.dumps(data, sort_keys=True).encode() + b"\n")
        self._file.flush()
        self._starts[outcome.name] = start

    def close(self) -> None:
        """Lets go of the folder. Of a job of which nothing was done (a model was missing, say) nothing stays."""
        if not self._starts:
            for path in (self.folder / _LINK, self._path):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):      # holds something else
                for path in self._made:
                    path.rmdir()
        self._file.close()

    def outcomes(self) -> Iterator[Outcome]:
        """Everything that is done, sorted by picture."""
        with self._path.open("rb") as file:
            for name in sorted(self._starts):
                file.seek(self._starts[name])
                data = json.loads(file.readline())
                data["changes"] = tuple(data.get("changes", ()))
                yield Outcome(**data)

    def finish(self, names: set[str]) -> tuple[Path, Counter[str]]:
        """Writes the scene file and the log of the pictures `names`; (scene file, what was left out by reason)."""
        self._file.close()
        ignored: Counter[str] = Counter()
        scenes, log = self.folder / "scenes.jsonl", self.folder / "log.tsv"
        partial = scenes.with_name(".scenes.jsonl.partial")
        lines = ["picture\toutcome\tdetails\n"]
        with partial.open("w") as file:
            for outcome in self.outcomes():
                if outcome.name not in names:
                    continue
                place = _kept(outcome.name) if outcome.changes else f"{_LINK}/{outcome.name}"
                if outcome.scene:
                    file.write(f'{{"file":{json.dumps(place)},{outcome.scene[1:]}\n')
                else:
                    ignored[outcome.reason] += 1
                ignored.update(outcome.left_out)
                if outcome.reason or outcome.changes or outcome.left_out:
                    told = outcome.reason or ("picture: " + ", ".join(outcome.changes) if outcome.changes else "scene")
                    dropped = [f"{reason}: {n}" for reason, n in sorted(outcome.left_out.items())]
                    lines.append("\t".join(part.replace("\t", " ").replace("\n", " ") for part in (
                        outcome.name, told, "; ".join([outcome.detail] * bool(outcome.detail) + dropped))) + "\n")
        partial.replace(scenes)
        write_whole(log, "".join(lines))
        return scenes, ignored


def _lines(path: Path) -> int:
    """How many whole lines a file begins with, at most two."""
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in itertools.islice(file, 2))


def _kept(name: str) -> str:
    return f"{_PICTURES}/{name}.jpg"
