"""Validation scores, an image grid and kernels, between the epochs of a training."""

import math
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from pipeline.data.slices import SliceDataset, Store
from pipeline.figures import image_grid
from pipeline.metrics.fidelity import psnr
from pipeline.metrics.sharpness import high_frequency_ratio
from pipeline.training.objective import Objective

SHOWN = 8


class ValidationMonitor:
    """Scores and pictures of the validation subjects, at most `limit` slices of each.

    Everything is read once: it is small, and used after every epoch.
    """

    def __init__(self, store: Store, device: torch.device, limit: int = 16) -> None:
        data = SliceDataset(store, store.subjects("validation"))
        self._subjects = [
            data.of_subject(index, limit).to(device) for index in range(len(data.subjects))
        ]
        shown = data
        if not self._subjects:  # pictures of training subjects, then
            shown = SliceDataset(store, store.subjects("train"))
        subjects = np.linspace(0, len(shown.subjects) - 1, SHOWN).round().astype(int)
        heights = np.linspace(0.3, 0.7, SHOWN)
        slices = [
            shown[int(shown.first[s] + h * (shown.first[s + 1] - shown.first[s]))]
            for s, h in zip(subjects, heights, strict=True)
        ]
        self.images = torch.stack(slices).to(device)
        """Fixed images (SHOWN,C,H,W) of pictures and kernels."""

    @torch.no_grad()
    def validate(self, objective: Objective, beta: float, warm_up: bool) -> dict[str, float]:
        """Means over validation subjects; empty where there are none."""
        training = objective.training
        objective.eval()
        rows: list[dict[str, float]] = []
        for images in self._subjects:
            parts = objective.elbo(images, warm_up=warm_up, mean_latent=True)
            rows.append(
                {
                    "psnr": psnr(images, parts.reconstruction).mean().item(),
                    "high_frequency_ratio": high_frequency_ratio(images, parts.reconstruction),
                    "rate": parts.rate.mean().item(),
                    "distortion": parts.distortion.mean().item(),
                    "objective": (parts.distortion + beta * parts.rate).mean().item(),
                }
            )
        objective.train(training)
        return {key: fmean(row[key] for row in rows) for key in (rows[0] if rows else ())}

    def psnr_of_the_mean(self) -> float:
        """PSNR where the mean slice stands for every one, dB: what a model has to surpass.

        Mean over validation subjects; -inf where there are none.
        """
        if not self._subjects:
            return -math.inf
        mean = torch.cat(self._subjects).mean(dim=0, keepdim=True)
        return fmean(psnr(x, mean.expand_as(x)).mean().item() for x in self._subjects)

    @torch.no_grad()
    def picture(self, objective: Objective) -> np.ndarray:
        """Originals over reconstructions, uint8 (H,W,3)."""
        reconstruction = objective.vae.infer(self.images).reconstruction
        return image_grid(torch.cat([self.images, reconstruction]).cpu(), columns=SHOWN)

    @torch.no_grad()
    def kernels(self, objective: Objective) -> Tensor | None:
        """Kernels of the fixed images, (SHOWN,1,s,s) on the CPU; None without a network."""
        kernels = objective.kernel(objective.vae.infer(self.images).latent)
        return None if kernels is None else kernels.cpu()
