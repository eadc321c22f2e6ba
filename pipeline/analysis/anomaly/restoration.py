"""The healthy image nearest to an image: gradient ascent on the model's posterior.

Chen, You, Tezcan, Konukoglu, Unsupervised lesion detection via image restoration with a normative
prior, Medical Image Analysis 64, 2020 (arXiv 2005.00031): the restored image maximises

    ELBO(x) − w · TV(x − y),    ELBO(x) = log p(x | z) − KL(q(z|x) ‖ p(z)),  z the mean of q(z|x)

where y is what was measured: the prior p(x), here bounded by the ELBO, pulls x towards healthy
anatomy, and the total variation favours changes that are connected, as lesions are.
"""

import torch
from torch import Tensor

from pipeline.analysis.anomaly.maps import NormativeModel, Progress
from pipeline.analysis.inverse.total_variation import gradient

# Intensity a step: Adam's steps do not depend on the gradient's size, which σ and C change a lot.
STEP = 0.01
# Of the total variation, to be differentiable at 0; intensity.
SMOOTH = 1e-3


def total_variation(image: Tensor) -> Tensor:
    """Sum over pixels of the length of the forward difference, isotropic: (B,C,H,W) -> (B,).

    Rudin, Osher, Fatemi 1992; intensity units. Smoothed, less the smoothing's own value, so that a
    constant image has 0.
    """
    length = (gradient(image).square().sum(dim=0) + SMOOTH**2).sqrt() - SMOOTH
    return length.sum(dim=(1, 2, 3))


def objective(model: NormativeModel, image: Tensor, measured: Tensor, weight: Tensor) -> Tensor:
    """ELBO(x) − w · TV(x − y) of each image (B,), nats; weight w (B,), nats per intensity."""
    posterior = model.encode(image)
    elbo = model.log_likelihood(image, posterior.mean) - posterior.rate()
    return elbo - weight * total_variation(image - measured)


def restore(
    model: NormativeModel,
    images: Tensor,
    *,
    steps: int,
    tv: float,
    batch_size: int,
    progress: Progress,
) -> Tensor:
    """Restore images; deterministic.

    Args:
        model: of healthy anatomy.
        images: (n,1,H,W) in [0,1].
        steps: of Adam (Kingma & Ba 2015), its step falling linearly to 0; 0 gives the images back.
        tv: weight of the total variation in units of one over the root of the law's mean variance a
            pixel, so that it means the same for every model.
        batch_size: images at once.
        progress: gets the share that is done, and a note.

    Returns:
        (n,1,H,W) in [0,1].
    """
    restored = []
    batches = images.split(batch_size)
    for index, measured in enumerate(batches):
        with torch.no_grad():
            law = model.law(model.encode(measured).mean)
            variance = law.standard_deviation(measured.shape).square()
            weight = tv / variance.mean(dim=(1, 2, 3)).sqrt()
        image = measured.clone().requires_grad_()
        optimizer = torch.optim.Adam([image], lr=STEP)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = STEP * (1 - step / steps)
            loss = -objective(model, image, measured, weight).sum()
            (image.grad,) = torch.autograd.grad(loss, image)
            optimizer.step()
            with torch.no_grad():
                image.clamp_(0, 1)
            progress((index + (step + 1) / steps) / len(batches), "restoration")
        restored.append(image.detach().cpu())
    return torch.cat(restored)
