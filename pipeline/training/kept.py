"""What is fitted to a checkpoint's averaged weights after the training, in files beside it.

    checkpoints/step-00000340/NAME.safetensors   its weights
    checkpoints/step-00000340/NAME.json          what it was fitted with, SHA-256; written last

The checkpoint itself stays as it is.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import safetensors.torch
from torch import nn

from pipeline.files import atomic_file, write_text
from pipeline.training.checkpoint import Checkpoint

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Kept:
    """The place of a fitted part. `inputs`: what it depends on beside the checkpoint, as JSON."""

    checkpoint: Checkpoint
    name: str
    inputs: dict[str, Any]

    def write(self, module: nn.Module, sizes: dict[str, Any]) -> None:
        """sizes: what it takes to build the module again."""
        folder = self.checkpoint.path
        (folder / f"{self.name}.json").unlink(missing_ok=True)
        weights = {name: value.cpu().contiguous() for name, value in module.state_dict().items()}
        content = safetensors.torch.save(weights)
        with atomic_file(folder / f"{self.name}.safetensors") as stream:
            stream.write(content)
        record = {
            "inputs": self._all_inputs(),
            "sha256": hashlib.sha256(content).hexdigest(),
            "sizes": sizes,
        }
        write_text(folder / f"{self.name}.json", json.dumps(record, indent=1) + "\n")

    def read(self, build: Callable[[dict[str, Any]], M], any_kept: bool = False) -> M | None:
        """The module in evaluation mode; build: sizes -> the module without its weights.

        any_kept: one that was fitted with other settings will do. None if there is none from
        these inputs; a damaged one counts as none, with a warning.
        """
        path = self.checkpoint.path / f"{self.name}.safetensors"
        try:
            record = json.loads(path.with_suffix(".json").read_bytes())
            inputs = self._all_inputs()
            if any_kept:
                inputs = record["inputs"] | {"checkpoint": inputs["checkpoint"]}
            if record["inputs"] != inputs:
                return None
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != record["sha256"]:
                log.warning("%s is not what was written: it is made again", path)
                return None
            module = build(record["sizes"])
            module.load_state_dict(safetensors.torch.load(content))
            if not all(value.isfinite().all() for value in module.state_dict().values()):
                log.warning("%s is not finite: it is made again", path)
                return None
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a damaged file makes the readers raise
            log.warning("%s can't be read (%s): it is made again",
                        path.with_suffix(".json"), error)  # fmt: skip
            return None
        return module.eval()

    def _all_inputs(self) -> dict[str, Any]:
        return json.loads(json.dumps({"checkpoint": self.checkpoint.digest, **self.inputs}))
