"""Samples of the prior: how sharp they are, whether they are anatomy, and whether they are copies.

Anatomy is measured on images averaged over 4×4 pixels, which keep it and lose the texture.

A sample of the prior can be a training slice that was turned, bent and lightened, as the training's
augmentation does. So each image is registered to the slices it is compared with, and what remains
is their distance. Held-out subjects, who cannot have been copied, say how near another person is,
and copies that are planted say how many would be found.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pipeline.data.augmentation import augment
from pipeline.data.config import AugmentationConfig
from pipeline.data.slices import evenly_spread
from pipeline.evaluation.run import Slices
from pipeline.metrics import sharpness
from pipeline.metrics.distribution import kernel_distance
from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.metrics.statistics import Interval, single

FACTOR = 4
# VGG16 needs 32 pixels, and more than the averaged images have: they are enlarged smoothly.
SEEN_SIDE, SEEN_BATCH = 32, 64

# For a first look images are brought, by an affine map, into the position of the mean of all.
LOOK_SIDE, LOOK_STEPS = 16, 4
# Of all slices so many are registered at a side, under deformations up to a frequency, in so many
# steps, and of these the nearest once more.
STAGES = ((96, 16, 2, 4), (16, 32, 6, 12))
SIDE = STAGES[-1][1]
# A copy: nearer to one family than a third of its distance to the next (Favero et al. 2025).
COPY = 1 / 3
FALSE_ALARMS = 0.05
# Most images of each kind that are looked for: samples, held-out and training slices.
MOST = 96
DRAWS = 1000
BATCH = 32


class PriorSamples:
    """Images drawn from the prior, (n,C,H,W) on the CPU, and how sharp they are.

    power: mean radial power (n_bins,).
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.power = sharpness.radial_power(images).mean(dim=0)
        self._detail = {key: measure(images) for key, measure in sharpness.RATIOS.items()}

    def beside(self, images: Tensor, power: Tensor) -> dict[str, float]:
        """Their sharpness by that of a subject's images (n,C,H,W), of mean radial power `power`."""
        scores = {
            f"sample_{key}": sharpness.ratio_of_means(measure(images), self._detail[key])
            for key, measure in sharpness.RATIOS.items()
        }
        error = sharpness.spectrum_error(power[None], self.power[None])
        return scores | {"sample_spectrum_error": error}


def coarse(images: Tensor) -> Tensor:
    """(n,C,H,W) -> (n,C,H/4,W/4), the mean of every 4×4 pixels: anatomy without texture."""
    return functional.avg_pool2d(images, FACTOR)


def sample_scores(
    sampled: Tensor,
    held_out: Tensor,
    training: Tensor | None,
    network: PerceptualDistance | None,
    device: torch.device,
    seed: int,
) -> dict[str, Interval]:
    """Scores of samples at low resolution; all images `coarse`, (n,C,h,w), on the CPU.

    sample_kid_coarse, and training_kid_coarse of as many training slices, real ones of other
    subjects; none without a network.
    """
    if network is None or min(len(sampled), len(held_out)) < 2:
        return {}

    def features(averaged: Tensor) -> Tensor:
        parts = []
        for part in averaged.split(SEEN_BATCH):
            side = max(SEEN_SIDE, part.shape[-1])
            large = functional.interpolate(part, size=side, mode="bilinear", align_corners=False)
            parts.append(network.features(large.to(device)).double().cpu())
        return torch.cat(parts)

    real, sets = features(held_out), {"sample": sampled}
    if training is not None and len(training) >= 2:
        sets["training"] = training[evenly_spread(len(training), len(sampled))]
    return {
        f"{name}_kid_coarse": single(kernel_distance(real, features(images), seed))
        for name, images in sets.items()
    }


def _fields(side: int, order: int) -> tuple[Tensor, Tensor]:
    """Affine and cosine displacement fields (side²,b), and the stiffness of each (b,)."""
    y, x = _grid(side).unbind(1)
    fields, stiffness = [torch.ones_like(x), x, y], [0.0, 0.0, 0.0]
    for across in range(order + 1):
        for down in range(order + 1 - across):
            if across + down:
                fields.append(
                    torch.cos(math.pi / 2 * across * (x + 1))
                    * torch.cos(math.pi / 2 * down * (y + 1))
                )
                stiffness.append(float(across**2 + down**2) ** 2)
    return torch.stack(fields, dim=1), torch.tensor(stiffness)


def _grid(side: int) -> Tensor:
    """Centres of pixels in [-1,1]: (side²,2), row before column."""
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    return torch.cartesian_prod(axis, axis)


def _error(images: Tensor, goal: Tensor, contrast: bool = False) -> Tensor:
    """What is left of a goal (n,1,p) after a + b·x of images x (n,m,p), by least squares.

    With contrast after a + b·x + c·x log x, which undoes the contrast x^γ to first order, too.
    """
    parts = [images, torch.xlogy(images, images)] if contrast else [images]
    left = goal - goal.mean(2, keepdim=True)
    done: list[Tensor] = []
    for part in parts:
        part = part - part.mean(2, keepdim=True)
        for before in done:
            part = part - _along(part, before) * before
        left = left - _along(left, part) * part
        done.append(part)
    return left


def _along(what: Tensor, direction: Tensor) -> Tensor:
    """The coefficient of a direction in what is projected on it."""
    square = direction.square().sum(2, keepdim=True).clamp_min(1e-9)
    return (what * direction).sum(2, keepdim=True) / square


def register(
    goals: Float[Tensor, "n s s"], images: Float[Tensor, "n m s s"], order: int, steps: int
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m s s"]]:
    """Deform images smoothly to be like a goal each, and how unlike they remain.

    Gauss-Newton on the squared difference with the goal's gradients in place of the image's, which
    are the same at every step (Baker and Matthews, IJCV 2004).

    Args:
        goals: one image a row.
        images: m images to deform to each.
        order: highest frequency of the deformation; 0: affine.
        steps: of the iteration; the best of all is taken.

    Returns:
        The root of the share of a goal's variance that is not explained, and the deformed images.
    """
    count, number, side, _ = images.shape
    fields, stiffness = _fields(side, order)
    rows, columns = torch.gradient(goals, spacing=2 / side, dim=(1, 2))
    slopes = torch.cat([g.flatten(1)[..., None] * fields for g in (columns, rows)], dim=2)
    square = slopes.mT @ slopes
    held = square.diagonal(dim1=1, dim2=2).mean(1)[:, None] * (1e-2 * stiffness.repeat(2) + 1e-3)
    factor = torch.linalg.cholesky(square + torch.diag_embed(held + 1e-12))
    goal = goals.flatten(1)[:, None]
    size = (goal - goal.mean(2, keepdim=True)).norm(dim=2).clamp_min(1e-6)
    bent = torch.zeros(count, number, 2, fields.shape[1])
    least, made = torch.full((count, number), math.inf), images.flatten(2)
    for step in range(steps + 1):
        places = (bent @ fields.T).mT + _grid(side).flip(1)
        moved = functional.grid_sample(
            images.reshape(-1, 1, side, side),
            places.reshape(-1, side, side, 2),
            align_corners=False,
        ).reshape(count, number, -1)
        error = _error(moved, goal)
        unlike = error.norm(dim=2) / size
        better = unlike < least
        least, made = (
            torch.where(better, unlike, least),
            torch.where(better[..., None], moved, made),
        )
        if step < steps:
            further = torch.cholesky_solve((error @ slopes).mT, factor).mT
            bent = bent + further.reshape(bent.shape)
    return _error(made, goal, contrast=True).norm(dim=2) / size, made.reshape(images.shape)


def _small(images: Tensor, side: int = SIDE) -> Tensor:
    """Grey images (n,side,side)."""
    return functional.interpolate(images.mean(1, keepdim=True), (side, side), mode="area")[:, 0]


class _Search:
    """Distances to the slices of each family, as they are and mirrored; mean: of all, small."""

    def __init__(self, slices: Slices, mean: Tensor) -> None:
        self._mean = mean
        small = _small(slices.images)
        self._images = torch.cat([small, small.flip(-1)])
        self._families = slices.families.repeat(2)
        self._looks = self._look(self._images)

    def _look(self, small: Tensor) -> Tensor:
        """Vectors (n,·) of images (n,SIDE,SIDE), for a first look."""
        parts = [
            register(self._mean[None], _small(part[:, None], LOOK_SIDE)[None], 0, LOOK_STEPS)[1][0]
            for part in small.split(BATCH)
        ]
        looks = torch.cat(parts).flatten(1)
        return functional.normalize(looks - looks.mean(1, keepdim=True))

    def __call__(self, images: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distance of each image (n,C,H,W) to the nearest family and to the second nearest: (n,).

        own: families (n,) that are passed over. A distance is inf where there is no such family.
        """
        small = _small(images)
        mine = torch.full((len(small),), -1) if own is None else own
        pairs = [
            self._of(*part) for part in zip(small.split(BATCH), mine.split(BATCH), strict=True)
        ]
        first, second = (torch.cat(column) for column in zip(*pairs, strict=True))
        return first, second

    def _of(self, small: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        families = self._families.expand(len(small), -1)
        near = torch.arange(len(self._families)).expand(len(small), -1)
        unlike = torch.cdist(self._look(small), self._looks)
        unlike = unlike.masked_fill(own[:, None] == families, math.inf)
        for count, side, order, steps in STAGES:
            places = _nearest(unlike, families, count)
            near, families = near.gather(1, places), families.gather(1, places)
            images = _small(self._images[near].flatten(0, 1)[:, None], side)
            goals = _small(small[:, None], side)
            left = register(goals, images.reshape(*near.shape, side, side), order, steps)[0]
            unlike = left.masked_fill(unlike.gather(1, places).isinf(), math.inf)
        first, best = unlike.min(dim=1)
        others = families != families.gather(1, best[:, None])
        return first, unlike.where(others, torch.tensor(math.inf)).amin(dim=1)


def _nearest(unlike: Tensor, families: Tensor, count: int) -> Tensor:
    """Places (n,count) of the smallest of each row, at most a quarter of them of one family."""
    order = unlike.topk(min(4 * count, unlike.shape[1]), largest=False)
    ranked = families.gather(1, order.indices)
    nearer = (ranked[:, :, None] == ranked[:, None]).tril(-1).sum(2)
    kept = order.values.masked_fill(nearer >= count // 4, math.inf)
    return order.indices.gather(1, kept.topk(min(count, kept.shape[1]), largest=False).indices)


@torch.no_grad()
def memorisation(
    samples: Float[Tensor, "n C H W"],
    training: Slices,
    held_out: Slices,
    augmentation: AugmentationConfig,
    flip: bool,
    seed: int,
) -> dict[str, Interval]:
    """Whether samples come from the people trained on, and what would have been noticed.

    Args:
        samples: in [0,1], on the CPU as all others.
        training: slices that the model and its prior were made from.
        held_out: slices of others, prepared alike.
        augmentation, flip: of the training; planted copies are deformed by it.
        seed: of these deformations, and of the control's draws.

    Returns:
        sample_nearest: distance to the nearest training slice over that to the nearest held-out
            slice, by the same of held-out slices and other families; geometric means.
        sample_copies: share of samples that are nearer to one training family than a third of
            their distance to the next.
        sample_flagged: share of samples with a smaller ratio of distances than 95% of held-out
            slices; sample_copies_found: share of deformed training slices of which that is true.
        sample_membership: how well the distance to the nearest sample tells training from held-out
            slices: area under the ROC curve, .5 by chance; sample_membership_control: mean and
            range (95%) of the same between training families drawn in two.
        sample_families: the smaller number of families, training or held-out.

    Raises:
        ValueError: fewer than two families on either side.
    """
    if min(training.count, held_out.count) < 2:
        raise ValueError("memorisation needs two training and two held-out families")
    mean = _small(training.images, LOOK_SIDE).mean(0)
    mean = (mean + mean.flip(-1)) / 2
    members, strangers, made = training.some(MOST), held_out.some(MOST), samples[:MOST]
    trained, unseen = _Search(training, mean), _Search(held_out, mean)

    def ratio(images: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest training over nearest held-out, and nearest over second nearest training."""
        (near, next_near), (other, next_other) = trained(images), unseen(images)
        # A held-out slice is not compared with its own family: nor, on average, are these.
        other = other + (next_other - other).nan_to_num(0, 0) / held_out.count
        return _ratio(near, other), _ratio(near, next_near)

    random = torch.Generator().manual_seed(seed)
    planted = augment(members.images, augmentation, flip, random)
    of_samples, of_copies = ratio(made), ratio(planted)
    usual = _ratio(trained(strangers.images)[0], unseen(strangers.images, strangers.families)[0])
    least = usual.quantile(FALSE_ALARMS)
    drawn = _Search(Slices(made, torch.arange(len(made))), mean)
    members_near, strangers_near = (drawn(part.images)[0] for part in (members, strangers))
    control = _control(members_near, members.families, held_out.count, random)
    return {
        "sample_nearest": single((of_samples[0].log().mean() - usual.log().mean()).exp().item()),
        "sample_copies": single((of_samples[1] < COPY).double().mean().item()),
        "sample_flagged": single((of_samples[0] < least).double().mean().item()),
        "sample_copies_found": single((of_copies[0] < least).double().mean().item()),
        "sample_membership": single(_auroc(members_near, strangers_near)),
        "sample_membership_control": control,
        "sample_families": single(float(min(training.count, held_out.count))),
    }


def _ratio(near: Tensor, other: Tensor) -> Tensor:
    """near / other of distances that may be 0."""
    return near.clamp_min(1e-6) / other.clamp_min(1e-6)


def _auroc(members: Tensor, strangers: Tensor) -> float:
    """The chance that a member's distance is the smaller one; equal ones count half."""
    difference = strangers[None] - members[:, None]
    return ((difference > 0).double() + 0.5 * (difference == 0)).mean().item()


def _control(near: Tensor, families: Tensor, strangers: int, random: torch.Generator) -> Interval:
    """Mean and range of 95% of `_auroc` between members, some families of whom play strangers."""
    names = families.unique()
    some = min(strangers, len(names) // 2)
    areas = []
    for _ in range(DRAWS):
        drawn = names[torch.randperm(len(names), generator=random)[:some]]
        playing = torch.isin(families, drawn)
        areas.append(_auroc(near[~playing], near[playing]))
    low, mean, high = torch.tensor(areas).quantile(torch.tensor([0.025, 0.5, 0.975])).tolist()
    return {"mean": mean, "low": low, "high": high}
