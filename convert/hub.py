"""Where a checkpoint is: a path, or an id of the model hub, which is fetched."""

from __future__ import annotations

import re
from pathlib import Path

from spatialllm_jax.errors import UserError

# What this project reads; pickles are left where they are.
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def local(source: str | Path) -> Path:
    """The path of `source`; one that does not exist but reads like "facebook/dinov2-large" is fetched from the hub.

    Raises:
        UserError: it is neither here nor to be had.
    """
    path = Path(source)
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(str(source)) or str(source).startswith("."):
        raise UserError(f"{source} does not exist; give a folder, a file, or an id of the model hub "
                        "(facebook/dinov2-large)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(PATTERNS), etag_timeout=5))
    except Exception as error:  # offline, unknown, gated: the library has a class for each
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(f"{source} is not a folder here and the model hub did not give it ({reason}); fetch it where "
                        f"there is a connection (hf download {source} --local-dir DIR) and give DIR") from None
