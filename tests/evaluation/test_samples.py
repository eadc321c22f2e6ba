"""Anatomy of samples is judged at low resolution; copies are found, deformed ones too."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from data_prep import PrepareConfig, prepare
from pipeline.data.augmentation import augment
from pipeline.data.config import AugmentationConfig
from pipeline.data.slices import SliceDataset
from pipeline.evaluation.run import Slices
from pipeline.evaluation.samples import coarse, memorisation, register, sample_scores

AUGMENTATION, CPU = AugmentationConfig(), torch.device("cpu")


class Means:
    """Features are the means of the image's quarters."""

    def features(self, images: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 2).flatten(1)


def test_other_people_are_the_yardstick_of_averaged_images() -> None:
    image, expected = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 8, 8)
    image[0, 0, 4:8, 8:12] = expected[0, 0, 1, 2] = 1.0
    assert torch.equal(coarse(image), expected)
    training, held_out = coarse(torch.rand(40, 1, 32, 32)), coarse(torch.rand(40, 1, 32, 32))
    scores = sample_scores(0.5 * held_out, held_out, training, Means(), CPU, 0)  # type: ignore[arg-type]
    kid, people = (scores[k]["mean"] for k in ("sample_kid_coarse", "training_kid_coarse"))
    assert kid is not None and people is not None and kid > 0.1 > abs(people)
    assert sample_scores(training, held_out, training, None, CPU, 0) == {}
    alone = sample_scores(training, held_out, None, Means(), CPU, 0)  # type: ignore[arg-type]
    assert alone.keys() == {"sample_kid_coarse"}


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _heads(families: int, first: int, slices: int = 4, side: int = 32) -> Slices:
    """Smooth textures in a disc, similar within a family."""
    generator = np.random.default_rng(first)
    noise = generator.standard_normal((families, 1, side, side)).repeat(slices, axis=1)
    noise += 0.3 * generator.standard_normal(noise.shape)
    smooth = gaussian_filter(noise, (0, 0, 2, 2))
    axis = np.linspace(-1, 1, side)
    disc = np.hypot(axis[:, None], 1.3 * axis) < 0.8
    images = np.clip(0.5 + 0.15 * smooth / smooth.std(), 0, 1) * disc
    numbers = torch.arange(families).repeat_interleave(slices)
    return Slices(torch.from_numpy(images).float().reshape(-1, 1, side, side), numbers)


def _scores(samples: Tensor, training: Slices, held_out: Slices) -> dict[str, float]:
    scores = memorisation(samples, training, held_out, AUGMENTATION, True, 0)
    assert all(value["mean"] is not None for value in scores.values())
    return {key.removeprefix("sample_"): value["mean"] or 0.0 for key, value in scores.items()}


def test_a_deformation_is_undone() -> None:
    """Of the augmentation, contrast included; another image stays unlike."""
    image, other = _heads(2, 0, slices=1).images
    changed = augment(image.expand(8, -1, -1, -1), AUGMENTATION, False, _random(0))[:, 0]
    pair = torch.stack([image[0], other[0]]).expand(8, -1, -1, -1)
    before, after = (register(changed, pair, 6, steps)[0] for steps in (0, 10))
    assert (after[:, 0] < 0.5 * before[:, 0]).all() and (after[:, 0] < 0.5 * after[:, 1]).all()
    light = 0.1 + 0.8 * image
    assert register(light, image[None], 6, 0)[0].item() == pytest.approx(0.0, abs=1e-2)


def test_exact_copies_mirrored_ones_too_are_copies_and_other_people_are_not() -> None:
    training, held_out, others = _heads(8, 0), _heads(8, 1), _heads(8, 2)
    copied = _scores(training.images.flip(-1), training, held_out)
    assert copied["nearest"] < 0.01 and copied["copies"] == copied["flagged"] == 1.0
    fresh = _scores(others.images, training, held_out)
    assert fresh == _scores(others.images, training, held_out)
    assert fresh["nearest"] == pytest.approx(1.0, abs=0.1)
    assert fresh["copies"] == 0 and fresh["flagged"] < 0.5
    assert copied["membership"] == 1 and fresh["membership"] == pytest.approx(0.5, abs=0.2)
    assert fresh["copies_found"] > 0.9 and fresh["families"] == 8
    for pair in ((training, _heads(1, 1)), (_heads(1, 0), held_out)):
        with pytest.raises(ValueError, match="two training and two held-out"):
            memorisation(others.images, *pair, AUGMENTATION, True, 0)


@pytest.mark.slow
def test_of_planted_copies_95_of_100_are_found_and_slices_of_unseen_people_pass(
    oasis: Path, work: Path
) -> None:
    """At 64², of twelve OASIS families trained on; the others are unseen."""
    config = PrepareConfig(
        name="oasis",
        source="hcp",
        root=str(oasis),
        subjects_table=str(oasis / "subjects.csv"),
        size=64,
        spacing_mm=3.2,
        slice_spacing_mm=2.0,
        min_brain_area=0.5,
    )
    store = prepare(config, work).store
    data = SliceDataset(store, sorted(store.subjects(), key=lambda entry: entry.family))
    images, families = data.__getitems__(range(len(data))), data.families_of(range(len(data)))

    def some(first: int, last: int) -> Slices:
        chosen = (families >= first) & (families < last)
        return Slices(images[chosen], families[chosen])

    training = some(0, 12)
    planted = augment(training.images[::4], AUGMENTATION, True, _random(2))
    copies = _scores(planted, training, some(12, 99))
    assert min(copies["copies_found"], copies["flagged"]) >= 0.95
    assert copies["nearest"] < 0.7 and copies["membership"] > 0.65
    unseen = _scores(some(12, 15).images, training, some(15, 99))
    assert unseen["flagged"] < 0.15 and unseen["nearest"] == pytest.approx(1.0, abs=0.1)
    assert unseen["copies"] == 0 and 0.3 < unseen["membership"] < 0.6
