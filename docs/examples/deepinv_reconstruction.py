"""A decoder package as the prior of a deepinv reconstruction: undersampled MRI, slice by slice.

pip install deepinv
python docs/examples/deepinv_reconstruction.py work/packages/demo work/stores/demo
"""

import sys

import deepinv
import torch
from torch import Tensor

from data_prep import Store
from pipeline.data.slices import SliceDataset
from pipeline.package import DecoderPackage, load


class DecoderPrior(deepinv.optim.Prior):
    """−ELBO of an image: −log p(x|z) + KL(q(z|x) ‖ p(z)), z the posterior's mean, nats."""

    def __init__(self, package: DecoderPackage) -> None:
        super().__init__()
        self.package = package

    def fn(self, x: Tensor, *_: object, **__: object) -> Tensor:
        posterior = self.package.encode(x)
        return posterior.rate() - self.package.log_likelihood(x, posterior.mean)


def reconstruct(
    package: DecoderPackage, physics: deepinv.physics.Physics, y: Tensor, noise: float
) -> Tensor:
    """The image (B,1,H,W) that is likely under data y and prior at once, by Adam from A*y.

    deepinv's MRI has complex images as two channels; brains here are real.
    """
    fidelity, prior = deepinv.optim.L2(sigma=noise), DecoderPrior(package)
    image = physics.A_adjoint(y)[:, :1].clamp(0, 1).requires_grad_()
    optimiser = torch.optim.Adam([image], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for _ in range(300):
        both = torch.cat([image, torch.zeros_like(image)], dim=1)
        loss = (fidelity(both, y, physics) + prior.fn(image)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return image.detach().clamp(0, 1)


def main(folder: str, store: str) -> tuple[float, float]:
    """Prints and returns PSNR in dB at acceleration 4: of zero filling, of the reconstruction."""
    package, opened = load(folder), Store.open(store)
    images = SliceDataset(opened, opened.subjects("test")).of_subject(0, 4)
    size = (2, *images.shape[-2:])
    generator = deepinv.physics.generator.GaussianMaskGenerator(size, acceleration=4)
    mask = generator.step(batch_size=1, seed=0)["mask"]
    noise = 0.01
    physics = deepinv.physics.MRI(mask=mask, noise_model=deepinv.physics.GaussianNoise(noise))
    y = physics(torch.cat([images, torch.zeros_like(images)], dim=1))
    measure = deepinv.metric.PSNR()
    found = []
    for name, image in (
        ("zero filling", physics.A_adjoint(y)[:, :1].clamp(0, 1)),
        ("decoder", reconstruct(package, physics, y, noise)),
    ):
        found.append(measure(image, images).mean().item())
        print(f"{name}: {found[-1]:.2f} dB")
    return found[0], found[1]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
