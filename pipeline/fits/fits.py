"""Fits to a trained run, made once, at the end of its training; evaluation and export read them.

runs/RUN/fits/residual.safetensors   the law of its residuals
runs/RUN/fits/prior.safetensors      the prior of its samples
runs/RUN/fits/fits.json              whose checkpoint's they are, SHA-256; written last
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from data_prep.common.progress import Reporter
from data_prep.common.wording import command
from pipeline.config import Config
from pipeline.data.slices import Store
from pipeline.errors import InputError
from pipeline.files import atomic_file, write_json
from pipeline.fits.prior import fit_prior
from pipeline.fits.residual import fit_residual
from pipeline.losses.residual import ResidualLaw
from pipeline.models.prior import LatentPrior
from pipeline.models.vae import VAE

FOLDER, RECORD = "fits", "fits.json"
RESIDUAL, PRIOR = "residual.safetensors", "prior.safetensors"


@dataclass(frozen=True)
class Fits:
    """The law of residuals and the prior of samples of a checkpoint; None where not asked for.

    split: whose subjects the law was fitted to and calibrated on, validation or train; families:
    how many validation families calibrated it; digest: SHA-256 of the record, "" where there is
    none.
    """

    law: ResidualLaw | None = None
    prior: LatentPrior | None = None
    split: str = ""
    families: int = 0
    digest: str = ""


def fit(vae: VAE, config: Config, store: Store) -> Fits:
    """Fit both. vae: averaged weights; store: what it was trained on."""
    law = prior = None
    if config.prior.pieces:
        with Reporter() as reporter:
            prior = fit_prior(vae, config, store, reporter)
    if config.likelihood.residual == "none":
        return Fits(prior=prior)
    with Reporter() as reporter:
        law = fit_residual(vae, config, store, reporter)
    families = {entry.family for entry in store.subjects("validation")}
    return Fits(law, prior, "validation" if families else "train", len(families))


def write_fits(run: Path, checkpoint: str, fits: Fits) -> None:
    """Write them into the folder of a run. checkpoint: the digest of the one they are fitted to."""
    folder = run / FOLDER
    (folder / RECORD).unlink(missing_ok=True)
    digests = {}
    for name, module in ((RESIDUAL, fits.law), (PRIOR, fits.prior)):
        (folder / name).unlink(missing_ok=True)
        if module is not None:
            weights = {key: v.cpu().contiguous() for key, v in module.state_dict().items()}
            content = safetensors.torch.save(weights)
            digests[name] = hashlib.sha256(content).hexdigest()
            with atomic_file(folder / name) as stream:
                stream.write(content)
    record = {"split": fits.split, "families": fits.families}
    write_json(folder / RECORD, {"checkpoint": checkpoint, "sha256": digests, **record})


def fits_digest(run: Path, checkpoint: str) -> str:
    """SHA-256 of the record of a run's fits, "" where they are of another checkpoint.

    Raises InputError where the training was stopped before they were made.
    """
    return _record(run, checkpoint)[1]


def read_fits(run: Path, checkpoint: str, vae: VAE) -> Fits:
    """The fits of a checkpoint, on the model's device; none where they are of another.

    Raises InputError where there are no files, or one is not what was written.
    """
    record, digest = _record(run, checkpoint)
    if not record:
        return Fits()
    device = next(vae.parameters()).device
    law = prior = None
    if weights := _weights(run, RESIDUAL, record):
        law = ResidualLaw(vae.image_shape, floor=1.0)
        law.load_state_dict(weights)
        law = law.eval().requires_grad_(False).to(device)
    if weights := _weights(run, PRIOR, record):
        pieces, size, rank = weights["factors"].shape
        prior = LatentPrior(size, pieces, rank)
        prior.load_state_dict(weights)
        prior = prior.eval().to(device)
    return Fits(law, prior, record["split"], record["families"], digest)


def _record(run: Path, checkpoint: str) -> tuple[dict[str, Any], str]:
    """The record of a run's fits and its SHA-256, both empty where it is of another checkpoint."""
    again = command("train", makes=run.name)
    try:
        content = (run / FOLDER / RECORD).read_bytes()
        record = json.loads(content)
        if record["checkpoint"] != checkpoint:
            return {}, ""
        return record, hashlib.sha256(content).hexdigest()
    except FileNotFoundError:
        raise InputError(
            f"run {run.name} has no law of residuals and no prior yet, for its training was "
            f"stopped: the same command again finishes it ({again})"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise _damaged(run, RECORD) from None


def _weights(run: Path, name: str, record: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of a file by name, none where it was not asked for."""
    path, digest = run / FOLDER / name, record["sha256"].get(name)
    if digest is None:
        return {}
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != digest:
        raise _damaged(run, name)
    return safetensors.torch.load(content)


def _damaged(run: Path, name: str) -> InputError:
    return InputError(
        f"{run / FOLDER / name} is not what was written: the same training again makes it anew "
        f"({command('train', makes=run.name)})"
    )
