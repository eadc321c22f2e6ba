"""How well a map finds lesions that raters have drawn, voxel by voxel."""

from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc, binary_average_precision


@dataclass(frozen=True)
class Detection:
    """auroc: 0.5 is chance; average_precision: the share of lesion voxels is chance.

    best_dice: the highest over all thresholds, a bound on that of any one; threshold: where it is
    reached, in the map's units.
    """

    auroc: float
    average_precision: float
    best_dice: float
    threshold: float


def detect(score: np.ndarray, lesion: np.ndarray) -> Detection:
    """Score (n,) float, lesion (n,) bool, both of the brain's voxels. NaN without both classes.

    Raises ValueError where they do not match.
    """
    if score.shape != lesion.shape or score.ndim != 1:
        raise ValueError(f"score {score.shape} and lesion {lesion.shape} must be (n,) both")
    if lesion.all() or not lesion.any():
        return Detection(*(float("nan"),) * 4)
    # torchmetrics takes values outside [0,1] for logits, and a sigmoid makes ties of the largest.
    # The two areas depend on ranks alone.
    _, rank = np.unique(score, return_inverse=True)
    ranked = torch.from_numpy(rank / max(rank.max(), 1))
    truth = torch.from_numpy(lesion.astype(np.int64))
    dice, threshold = best_dice(score, lesion)
    return Detection(
        float(binary_auroc(ranked, truth)),
        float(binary_average_precision(ranked, truth)),
        dice,
        threshold,
    )


def best_dice(score: np.ndarray, lesion: np.ndarray) -> tuple[float, float]:
    """The highest Dice of {score >= t} with the lesions over all t, and that t.

    Dice, Ecology 26, 1945: 2 |A ∩ B| / (|A| + |B|).
    """
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    hits = np.cumsum(lesion[order])
    dice = 2 * hits / (np.arange(1, len(score) + 1) + hits[-1])
    dice[:-1][ordered[1:] == ordered[:-1]] = -1  # a threshold takes all equal scores or none
    best = int(np.argmax(dice))
    return float(dice[best]), float(ordered[best])
