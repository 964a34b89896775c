"""What every command shares: one sentence and exit code 2 for a user's mistake, `--json`, logging."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spatialllm_jax.errors import Interrupted, UserError
from spatialllm_jax.parallel import xla_flags

_DISK_FULL = {errno.ENOSPC: "the disk is full", errno.EROFS: "the file system is read-only",
              errno.EACCES: "permission denied", errno.EDQUOT: "the disk quota is used up"}


def parser(description: str, **kwargs: Any) -> argparse.ArgumentParser:
    """An argument parser with the flags that every command has. Bad flags exit with code 2."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)
    result.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return result


def check_file(flag: str, path: str) -> None:
    """Raises UserError where no file can be written at `path`; for before long work. Makes nothing."""
    file = Path(path)
    above = next((folder for folder in file.parents if folder.exists()), file)
    wrong = (f"{file} is a folder" if file.is_dir() else f"{above} is no folder" if not above.is_dir()
             else "" if os.access(above, os.W_OK) else f"{above} may not be written to")
    if wrong:
        raise UserError(f"{flag} {path} cannot be written: {wrong}; name another file")


def at_least_one(args: argparse.Namespace, *names: str) -> None:
    """Raises UserError where one of these flags, by the names of their values, is below 1."""
    for name in names:
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1")


def machine_flags(parser: argparse.ArgumentParser, traced: str) -> None:
    """Adds the flags of commands that run programs on accelerators; `prepare` acts on them.

    Args:
        traced: what `--profile` traces, and where it goes by default.
    """
    cache_flag(parser)
    parser.add_argument("--profile", nargs="?", const="", metavar="DIR",
                        help=f"write a trace of {traced}; see docs/profiling.md")


def cache_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--compilation-cache`, for commands whose programs are not traced; `prepare` acts on it."""
    parser.add_argument("--compilation-cache", metavar="DIR",
                        help="folder for compiled programs, or none (default: the user's cache; on CPUs none)")


def mesh_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--mesh`, for commands that answer with a model; `mesh` reads it."""
    parser.add_argument("--mesh", default="", metavar="AXIS=N,...",
                        help="spread the model over several devices, e.g. fsdp=8 or data=2,tensor=4 (default: one)")


def mesh(args: argparse.Namespace) -> Any:
    """The mesh that `--mesh` describes; None for a single device. Raises UserError for none that can be."""
    if not args.mesh:
        return None
    from spatialllm_jax.parallel.mesh import read_mesh

    return read_mesh(args.mesh)


def prepare(args: argparse.Namespace) -> None:
    """Tells XLA what the platform needs; before anything imports JAX."""
    xla_flags.apply(args.compilation_cache)


def run(command: Callable[[list[str]], Mapping[str, Any]], json_flag: bool | None = None) -> None:
    """Runs `command(argv)`, prints its result as JSON when `--json` was given, and sets the exit code.

    Args:
        command: takes the arguments after the program's name; returns what `--json` prints.
        json_flag: overrides the look for `--json` among the arguments.
    """
    argv = sys.argv[1:]
    try:
        result = command(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:     # an OSError too, so before it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: cannot write: {_DISK_FULL[error.errno]}{where}; free space or choose another folder",
              file=sys.stderr)
        raise SystemExit(2) from None
    except Interrupted as stop:
        print(f"stopped; saved at step {stop.step}, the same command goes on from there", file=sys.stderr)
        raise SystemExit(128 + stop.signal) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    if json_flag if json_flag is not None else "--json" in argv:
        print(json.dumps(result, sort_keys=True), flush=True)
