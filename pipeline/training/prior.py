"""Fitting the prior of samples to a trained model, and its file.

    checkpoints/step-00000340/prior.safetensors   the fitted distribution
    checkpoints/step-00000340/prior.json          what it was fitted with, SHA-256; written last

It belongs to one checkpoint's averaged weights, which stay as they are.
"""

import dataclasses
import hashlib
import json
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.data.augmentation import AugmentationConfig, augment
from pipeline.data.slices import SliceDataset, Store
from pipeline.files import replacing, write_text
from pipeline.models.config import ModelConfig
from pipeline.models.prior import LatentPrior, PriorConfig, covered
from pipeline.models.vae import VAE
from pipeline.progress import Reporter
from pipeline.training.checkpoint import MANIFEST, Checkpoint

WEIGHTS, RECORD = "prior.safetensors", "prior.json"
BATCH = 64
# Latents that a component of the mixture is to have at least.
LEAST_IMAGES = 40
# Least standard deviation of a principal component that hardly varies.
LEAST_DEVIATION = 1e-2

Notice = Callable[[float, str], None]

log = logging.getLogger(__name__)


def shape_of(model: ModelConfig, settings: PriorConfig, images: int) -> dict[str, int]:
    """Sizes of the prior that `images` latents can be trusted with; arguments of LatentPrior."""
    size = covered(model, settings.largest)
    return {
        "latent_size": model.latent_size,
        "covered": size,
        "components": max(1, min(settings.components, images // LEAST_IMAGES)),
        "dimensions": max(1, min(settings.dimensions, size, images // 4)),
    }


def weaker(augmentation: AugmentationConfig, share: float) -> AugmentationConfig:
    """The same augmentation with every range that share of its size."""
    ranges = ("rotation_degrees", "scale", "translation", "shear", "elastic", "gamma", "gain")
    smaller = {name: share * getattr(augmentation, name) for name in ranges}
    return dataclasses.replace(augmentation, **smaller)


@torch.no_grad()
def latents(
    vae: VAE,
    data: SliceDataset,
    settings: PriorConfig,
    augmentation: AugmentationConfig,
    flip: bool,
    notice: Notice,
) -> Tensor:
    """Draws of the posterior of `settings.images` training images, (n,L) on the CPU.

    Every image comes as often as another, but for one; the order and the draws are the seed's.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    device = next(vae.parameters()).device
    rounds = -(-settings.images // len(data))
    order = torch.cat([torch.randperm(len(data), generator=generator) for _ in range(rounds)])
    order = order[: settings.images]
    softer = weaker(augmentation, settings.augmentation)
    found, done = [], 0
    for indices in order.split(BATCH):
        images = data.__getitems__(indices.tolist()).to(device)
        images = augment(images, softer, flip, generator)
        noise = torch.randn((len(images), vae.latent_size), generator=generator).to(device)
        images = images.contiguous(memory_format=torch.channels_last)
        found.append(vae.infer(images, noise).latent.cpu())
        done += len(images)
        notice(0.7 * done / len(order), "prior: latents of training images")
    return torch.cat(found)


def fit(drawn: Tensor, model: ModelConfig, settings: PriorConfig, notice: Notice) -> LatentPrior:
    """The mixture that fits latents (n,L) best: principal components, then EM.

    The covariance is shrunk towards a multiple of the identity as Ledoit and Wolf (2004) say: n may
    be no more than its size.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage  # takes seconds
    from sklearn.mixture import GaussianMixture

    prior = LatentPrior(**shape_of(model, settings, len(drawn)))
    size, dimensions = len(prior.mean), prior.centres.shape[1]
    components = len(prior.weights)
    part = drawn[:, :size].double()
    mean = part.mean(dim=0)
    centred = part - mean
    shrinkage = float(ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True))
    covariance = centred.T @ centred / len(part)
    level = covariance.diagonal().mean()
    covariance = (1 - shrinkage) * covariance + shrinkage * level * torch.eye(size).double()
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    notice(0.8, "prior: mixture")
    leading = (centred @ vectors[:, :dimensions]).numpy()
    mixture = GaussianMixture(
        components, reg_covar=settings.regularisation, max_iter=50, random_state=settings.seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged: it need not
        mixture.fit(leading)
    factors = np.linalg.cholesky(mixture.covariances_)
    found = {
        "mean": mean,
        "basis": vectors,
        "weights": mixture.weights_,
        "centres": mixture.means_,
        "factors": factors,
        "deviations": values[dimensions:].clamp_min(LEAST_DEVIATION**2).sqrt(),
    }
    prior.load_state_dict({k: torch.as_tensor(v, dtype=torch.float32) for k, v in found.items()})
    notice(1.0, "prior")
    return prior.eval()


def prior_of(
    checkpoint: Checkpoint, vae: VAE, config: Config, store: Store | None
) -> LatentPrior | None:
    """The prior of a checkpoint, on the model's device: read, or fitted now and kept.

    vae: with the checkpoint's averaged weights; store: what it was trained on. None where
    `prior.components` is 0, or there is none and nothing to fit it to.
    """
    if not config.prior.components:
        return None
    device = next(vae.parameters()).device
    inputs = _inputs(checkpoint, config)
    found = _read(checkpoint, config.model, inputs)
    if found is None and store is not None:
        data = SliceDataset(store, store.subjects("train"))
        flip = config.data.flip and store.plane != "sagittal"
        augmentation = config.data.augmentation
        with Reporter() as reporter:
            drawn = latents(vae, data, config.prior, augmentation, flip, reporter.update)
            found = fit(drawn, config.model, config.prior, reporter.update)
        _write(checkpoint, found, inputs)
    return None if found is None else found.to(device)


def _inputs(checkpoint: Checkpoint, config: Config) -> dict[str, Any]:
    """What a prior depends on; the same again gives the same prior."""
    inputs = {
        "checkpoint": hashlib.sha256((checkpoint.path / MANIFEST).read_bytes()).hexdigest(),
        "prior": dataclasses.asdict(config.prior),
        "augmentation": dataclasses.asdict(config.data.augmentation),
        "flip": config.data.flip,
    }
    return json.loads(json.dumps(inputs))


def _write(checkpoint: Checkpoint, prior: LatentPrior, inputs: dict[str, Any]) -> None:
    folder = checkpoint.path
    (folder / RECORD).unlink(missing_ok=True)
    content = safetensors.torch.save({k: v.contiguous() for k, v in prior.state_dict().items()})
    with replacing(folder / WEIGHTS) as stream:
        stream.write(content)
    record = {
        "inputs": inputs,
        "sha256": hashlib.sha256(content).hexdigest(),
        "sizes": prior.sizes,
    }
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")


def _read(checkpoint: Checkpoint, model: ModelConfig, inputs: dict[str, Any]) -> LatentPrior | None:
    """None where there is none from these inputs; one that is damaged is fitted again."""
    try:
        record = json.loads((checkpoint.path / RECORD).read_bytes())
        if record["inputs"] != inputs:
            return None
        content = (checkpoint.path / WEIGHTS).read_bytes()
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            log.warning("%s is not what was written: it is made again", checkpoint.path / WEIGHTS)
            return None
        prior = LatentPrior(model.latent_size, **record["sizes"])
        prior.load_state_dict(safetensors.torch.load(content))
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged file makes the readers raise
        log.warning("%s can't be read (%s): it is made again", checkpoint.path / RECORD, error)
        return None
    return prior.eval()
