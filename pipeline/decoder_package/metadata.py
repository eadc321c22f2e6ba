"""metadata.json: what describes a package, and how it is checked.

The keys of a MONAI bundle (docs.monai.io, "MONAI Bundle Specification") come first, so that tools
for bundles can show it; those that `load` needs stand beside them.
"""

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from importlib import metadata as installed
from typing import Any

import numpy as np
import torch

from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import ModelConfig

FORMAT = "sharp-vae-decoder-package"
SCHEMA_VERSION = 3
METADATA = "metadata.json"
INTENSITY_RANGE = (0.0, 1.0)
# What `monai.bundle verify_metadata` checks a bundle's metadata by.
MONAI_SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
PAPER = (
    "Bredell, Flouris, Chaitanya, Erdil, Konukoglu: Explicitly Minimizing the Blur Error of "
    "Variational Autoencoders. ICLR 2023, arXiv 2304.05939"
)
UNSAID = "not stated"

# Not part of the digest: a graph's archive holds times, and its weights are in it already.
GRAPHS = (".pt2", ".onnx")


def describe(
    image_shape: tuple[int, int, int],
    model: ModelConfig,
    likelihood: LikelihoodConfig,
    *,
    prior: Mapping[str, int] | None = None,
    residual: Mapping[str, float] | None = None,
    spacing_mm: float = 1.0,
    orientation: str = "",
    plane: str = "",
    prepare: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    store: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    trained_on: Mapping[str, Any] | None = None,
    authors: str = UNSAID,
    rights: str = UNSAID,
) -> dict[str, Any]:
    """The metadata of a package before its files are known.

    image_shape (C,H,W); prior: pieces and rank of a fitted one; residual: the floor of the fitted
    law of the residuals; spacing_mm in-plane pixel size; prepare: the store's recorded
    configuration; run: name, id, checkpoint; store: name, digest, simulated; evaluation: its
    metrics; trained_on: see `hashed_subjects`; authors, rights: of the trained decoder. Numbers
    that are not finite become null.
    """
    channels, *spatial = image_shape
    return _plain(
        {
            "schema": MONAI_SCHEMA,
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "version": _version("sharp-vae-mri"),
            "name": f"decoder of {(run or {}).get('name') or 'a VAE'}",
            "task": "Generative model of brain MRI slices: decoder, encoder and likelihood of a "
            "variational autoencoder",
            "description": f"Trained under the reconstruction term {likelihood.term}",
            "authors": authors,
            "copyright": rights,
            "references": [PAPER],
            "intended_use": "Research. Not a medical device, not validated for diagnosis.",
            "monai_version": _version("monai"),
            "pytorch_version": torch.__version__,
            "numpy_version": np.__version__,
            "python_version": platform.python_version(),
            "required_packages_version": {"safetensors": _version("safetensors")},
            "network_data_format": {
                "inputs": {
                    "latent": _tensor("latent", model.latent_size, [], None, "prior N(0, I)"),
                },
                "outputs": {
                    "image": _tensor("image", channels, spatial, INTENSITY_RANGE, "intensity"),
                },
            },
            "image_shape": list(image_shape),
            "latent_size": model.latent_size,
            "intensity_range": list(INTENSITY_RANGE),
            "spacing_mm": float(spacing_mm),
            "orientation": orientation,
            "plane": plane,
            "model": asdict(model),
            "prior": dict(prior) if prior else None,
            "residual": dict(residual) if residual else None,
            # A path of this machine does not belong in a package.
            "likelihood": asdict(replace(likelihood, vgg_weights="")),
            "prepare": dict(prepare or {}),
            "run": dict(run or {}),
            "store": dict(store or {}),
            "evaluation": None if evaluation is None else dict(evaluation),
            "trained_on": dict(trained_on or {}),
        }
    )


def hashed_subjects(subjects: Iterable[Mapping[str, str]]) -> dict[str, Any]:
    """Training subjects, so that an analysis can refuse them: SHA-256 of names, sorted.

    subjects: subject, family, source_sha256 of each. A hash hides names at a glance; it does not
    protect them, because all names of six digits can be tried.
    """
    subjects = list(subjects)
    found: dict[str, Any] = {"people": len(subjects)}
    for key in ("subject", "family"):
        found[key] = sorted({hashed(subject[key]) for subject in subjects})
    return found | {"source_sha256": sorted({subject["source_sha256"] for subject in subjects})}


def hashed(name: str) -> str:
    """SHA-256 of a subject's or a family's name, hexadecimal."""
    return hashlib.sha256(name.encode()).hexdigest()


def digest(metadata: Mapping[str, Any]) -> str:
    """SHA-256 of a package: all of its metadata but the digests of its graphs."""
    kept = {key: value for key, value in metadata.items() if key not in ("digest", "files")}
    kept["files"] = {
        name: None if name.endswith(GRAPHS) else entry
        for name, entry in metadata.get("files", {}).items()
    }
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return installed.version(name)
    except installed.PackageNotFoundError:
        return ""


def _tensor(
    kind: str,
    channels: int,
    spatial: list[int],
    value_range: tuple[float, float] | None,
    channel: str,
) -> dict[str, Any]:
    return {
        "type": kind,
        "format": "magnitude" if kind == "image" else "latent",
        "num_channels": channels,
        "spatial_shape": list(spatial),
        "dtype": "float32",
        "value_range": list(value_range) if value_range else [],
        "is_patch_data": False,
        "channel_def": {"0": channel},
    }


def _plain(value: Any) -> Any:
    """Values that survive a round trip through JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
