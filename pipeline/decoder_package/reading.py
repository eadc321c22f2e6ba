"""The reader: a folder or an address in MLflow -> a DecoderPackage. It never runs code."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.decoder_package.metadata import FORMAT, METADATA, SCHEMA_VERSION, digest
from pipeline.decoder_package.package import DecoderPackage
from pipeline.errors import InputError

SUFFIX = ".safetensors"
# A part's file -> the module's attribute; networks have graphs beside their weights.
PARTS = {
    "decoder": "decoder",
    "encoder": "encoder",
    "kernel_network": "kernel_network",
    "likelihood": "density",
}
AGAIN = "export it again (make export RUN=…)"


class Damaged(ValueError):
    """What a package says and what it holds are not the same; says which file and how."""


def load(source: str | Path, device: str | torch.device = "cpu") -> DecoderPackage:
    """Open a decoder package.

    source: its folder, or an address in MLflow: "models:/NAME@champion", "models:/NAME/3",
    "runs:/ID/decoder". Only metadata.json and the .safetensors files are read, into classes of this
    project: nothing in a package can run code here. (torch.export.load, which a decoder.pt2 needs,
    unpickles the parts of an archive that ask for it; do that with packages you trust.)

    Raises InputError, naming the file and the way out, where there is no package, or its metadata
    and its weights disagree.
    """
    folder = Path(_fetched(str(source)) if is_address(str(source)) else source)
    metadata = read_metadata(folder)
    try:
        package = _filled(folder, metadata)
    except Damaged as error:
        raise InputError(f"{error}: {AGAIN}") from error
    try:
        return package.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device} is not usable here: choose cpu or cuda") from error


def is_address(source: str) -> bool:
    """Whether a source is an address in MLflow."""
    return source.startswith(("models:/", "runs:/"))


def _fetched(address: str) -> Path:
    from pipeline.model_registry import fetch  # MLflow's import takes seconds

    return fetch(address)


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json of a package. Raises InputError where it is not there or can't be read."""
    path = folder / METADATA
    try:
        metadata = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"there is no decoder package at {folder}: write one with make export RUN=…"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({_reason(error)}): {AGAIN}") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"{path} is not that of a decoder package: write one with make export")
    if metadata.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {metadata.get('schema_version')}, this program reads "
            f"{SCHEMA_VERSION}: {AGAIN}"
        )
    return metadata


def _filled(folder: Path, metadata: dict[str, Any]) -> DecoderPackage:
    """The package with its weights, after every check. Raises Damaged."""
    path = folder / METADATA
    try:
        said = metadata["digest"]
        if said != digest(metadata):
            raise Damaged(f"{path} is not what was written (its digest differs)")
        if list(metadata["latent_shape"]) != list(metadata["model"]["latent"]):
            raise Damaged(f"{path}: latent_shape and model.latent disagree")
        package = DecoderPackage(metadata)
        files, tensors = metadata["files"], metadata["tensors"]
        for name, part in parts(package):
            _load_part(folder / f"{name}{SUFFIX}", part, files, tensors)
    except Damaged:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{path} is damaged ({_reason(error)})") from error
    return package


def parts(package: DecoderPackage) -> Iterator[tuple[str, nn.Module]]:
    """The parts that a package has, by their files' stem."""
    for name, attribute in PARTS.items():
        part = getattr(package, attribute)
        if part is not None:
            yield name, part


def _load_part(path: Path, part: nn.Module, files: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Weights from a file into a module, where file, metadata and module agree."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} can't be read ({_reason(error)})") from error
    if hashlib.sha256(content).hexdigest() != files[path.name]["sha256"]:
        raise Damaged(f"{path} is not what was written (its SHA-256 differs)")
    try:
        weights = safetensors.torch.load(content)
    except Exception as error:  # the reader's own classes, and what a strange header makes of it
        raise Damaged(f"{path} can't be read ({_reason(error)})") from error
    wanted = part.state_dict()
    for words, found in (("metadata.json", tensors[path.name]), ("the model", shapes(wanted))):
        if shapes(weights) != found:
            raise Damaged(f"{path} and {words} disagree on {_difference(shapes(weights), found)}")
    part.load_state_dict(weights)


def shapes(weights: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every tensor, as metadata.json has them."""
    return {
        name: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in sorted(weights.items())
    }


def _difference(left: dict[str, Any], right: dict[str, Any]) -> str:
    return next(name for name in sorted({*left, *right}) if left.get(name) != right.get(name))


def _reason(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
