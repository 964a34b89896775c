"""Furniture libraries out of the Debian package `sweethome3d-furniture`, on any system: no dpkg needed."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

from spatialllm_jax.errors import UserError

_MAGIC, _HEADER = b"!<arch>\n", 60


def unpack_libraries(package: str | Path, folder: str | Path) -> list[Path]:
    """Writes the package's `.sh3f` files into `folder`, unless they are there; returns their paths.

    A `.deb` is an ar archive whose member `data.tar.*` holds the files (deb(5)). The folder appears only
    when complete.

    Raises:
        UserError: the file is missing, is no Debian package, or holds no furniture library.
    """
    package, folder = Path(package), Path(folder)
    found = sorted(folder.glob("*.sh3f"))
    if found:
        return found
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(_member(package, "data.tar"))) as archive:
            members = [member for member in archive if member.isfile() and member.name.endswith(".sh3f")]
            if members:
                partial.mkdir(parents=True)
            for member in members:
                content = archive.extractfile(member)
                assert content is not None
                with (partial / Path(member.name).name).open("wb") as file:
                    shutil.copyfileobj(content, file)
    except tarfile.TarError as error:
        raise UserError(f"{package} cannot be unpacked ({error}); fetch it again") from None
    if not members:
        raise UserError(f"{package} holds no .sh3f file; give the Debian package sweethome3d-furniture")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return sorted(folder.glob("*.sh3f"))


def _member(package: Path, prefix: str) -> bytes:
    """Content of the first member of an ar archive whose name starts with `prefix`."""
    try:
        with package.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise UserError(f"{package} is not a Debian package; fetch it again")
            while len(header := file.read(_HEADER)) == _HEADER:
                name, size = header[:16].decode("ascii", "replace").strip(), int(header[48:58])
                if name.startswith(prefix):
                    return file.read(size)
                file.seek(size + size % 2, os.SEEK_CUR)
    except ValueError:
        raise UserError(f"{package} is damaged; fetch it again") from None
    except OSError as error:
        raise UserError(f"{package} cannot be read: {error.strerror}") from None
    raise UserError(f"{package} is not a Debian package; fetch it again")
