"""The checkpoint: its writer and its reader.

One file holds everything that a run needs to go on, and what evaluation needs to know of it. It
contains tensors and plain Python values only, so that reading it never runs code.
"""

from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.files import replacing

SCHEMA_VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write atomically: a crash or a full disk leaves the previous file as it was."""
    with replacing(path) as stream:
        torch.save({"schema_version": SCHEMA_VERSION, **state}, stream)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Raises InputError naming the file and the way out."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"no checkpoint at {path}: train first (make train)") from None
    except Exception as error:  # whatever a damaged file makes the reader raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"checkpoint {path} can't be read ({reason[:120]}): delete it and train again"
        ) from error
    version = state.get("schema_version") if isinstance(state, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"checkpoint {path} has schema version {version}, this program reads "
            f"{SCHEMA_VERSION}: train again"
        )
    return state
