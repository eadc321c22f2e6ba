"""The reader: a folder or an address in MLflow -> a DecoderPackage. It never runs code."""

import hashlib
import json
import math
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from data_prep.common.invocation import command
from pipeline.decoder_package.metadata import (
    FORMAT,
    INTENSITY_RANGE,
    METADATA,
    SCHEMA_VERSION,
    digest,
)
from pipeline.decoder_package.package import DecoderPackage
from pipeline.errors import InputError
from pipeline.files import existing_package, is_address

SUFFIX = ".safetensors"
# A part's file -> the module's place; networks have graphs beside their weights.
PARTS = {
    "decoder": "vae.decoder",
    "encoder": "vae.encoder",
    "kernel_network": "kernel_network",
    "likelihood": "density",
    "prior": "prior",
    "residual": "residual",
}


class Damaged(ValueError):
    """A package's metadata and its files disagree; the message names the file and how."""


def load(source: str | Path, device: str | torch.device = "cpu") -> DecoderPackage:
    """Open a decoder package.

    source: its folder, or an address in MLflow: "models:/NAME/3", "models:/NAME@ALIAS",
    "runs:/ID/decoder". Only metadata.json and the .safetensors files are read, into classes of this
    project: nothing in a package can run code here. (torch.export.load, which a decoder.pt2 needs,
    unpickles the parts of an archive that ask for it; do that with packages you trust.)

    Raises InputError, naming the file and the way out, if there is no package, or its metadata
    and its weights disagree.
    """
    folder = Path(_fetched(str(source)) if is_address(str(source)) else source)
    metadata = read_metadata(folder)
    try:
        package = _filled(folder, metadata)
    except Damaged as error:
        raise InputError(f"{error}: {_again()}") from error
    try:
        return package.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device} is not usable here: choose cpu or cuda") from error


def _fetched(address: str) -> Path:
    from pipeline.tracking.registry import fetch  # slow to import

    return fetch(address)


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json of a package. Raises InputError if it is not there or can't be read."""
    path = existing_package(folder) / METADATA
    try:
        metadata = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read ({_reason(error)}): {_again()}") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} describes no decoder package: write one with {command('export', run='…')}"
        )
    if metadata.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {metadata.get('schema_version')}, this program reads "
            f"{SCHEMA_VERSION}: {_again()}"
        )
    return metadata


def _filled(folder: Path, metadata: dict[str, Any]) -> DecoderPackage:
    """The package with its weights, after every check. Raises Damaged."""
    path = folder / METADATA
    try:
        if metadata["digest"] != digest(metadata):
            raise Damaged(f"{path} is not what was written (its digest differs)")
        _check_fields(path, metadata)
        files, tensors = metadata["files"], metadata["tensors"]
        with torch.device("meta"):  # no memory yet: damaged metadata may ask for any amount
            hollow = DecoderPackage(metadata)
            if metadata["latent_size"] != hollow.latent_size:
                raise Damaged(f"{path}: latent_size and model.levels disagree")
            _check_shapes(folder, hollow, tensors)
        package = DecoderPackage(metadata)
        for name, part in parts(package):
            _load_part(folder / f"{name}{SUFFIX}", part, files, tensors)
    except Damaged:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        raise Damaged(f"{path} is damaged ({_reason(error)})") from error
    return package


def _check_fields(path: Path, metadata: dict[str, Any]) -> None:
    """Raise Damaged (KeyError, TypeError) for values that no network would notice."""
    if not (math.isfinite(metadata["spacing_mm"]) and metadata["spacing_mm"] > 0):
        raise Damaged(f"{path}: spacing_mm is {metadata['spacing_mm']}")
    if list(metadata["intensity_range"]) != list(INTENSITY_RANGE):
        raise Damaged(f"{path}: intensity_range is not {list(INTENSITY_RANGE)}")
    for key in ("prepare", "trained_on", "files", "tensors"):
        if not isinstance(metadata[key], dict):
            raise Damaged(f"{path}: {key} is no table")


def _check_shapes(folder: Path, package: DecoderPackage, tensors: dict[str, Any]) -> None:
    """Raise Damaged if the model has other weights than the metadata says its files hold."""
    for name, part in parts(package):
        found, recorded = shapes(part.state_dict()), tensors[f"{name}{SUFFIX}"]
        if found != recorded:
            path = folder / f"{name}{SUFFIX}"
            raise Damaged(f"{path} and the model disagree on {_difference(found, recorded)}")


def parts(package: DecoderPackage) -> Iterator[tuple[str, nn.Module]]:
    """The parts that a package has, by their files' stem."""
    for name, attribute in PARTS.items():
        part = attrgetter(attribute)(package)
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
    except Exception as error:  # the reader's own classes, and whatever a strange header causes
        raise Damaged(f"{path} can't be read ({_reason(error)})") from error
    found, recorded = shapes(weights), tensors[path.name]
    if found != recorded:
        raise Damaged(f"{path} and {METADATA} disagree on {_difference(found, recorded)}")
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


def _again() -> str:
    return f"export it again ({command('export', run='…')})"
