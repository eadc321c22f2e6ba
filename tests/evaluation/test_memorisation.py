"""Copies of training slices are found, deformed ones too; slices of other people are not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from data_prep import PrepareConfig, prepare
from pipeline.data.augmentation import augment
from pipeline.data.config import AugmentationConfig
from pipeline.data.slices import SliceDataset
from pipeline.evaluation.memorisation import Slices, memorisation, register

AUGMENTATION = AugmentationConfig()


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
    found = memorisation(samples, training, held_out, AUGMENTATION, True, 0)
    assert all(value["mean"] is not None for value in found.values())
    return {key.removeprefix("sample_"): value["mean"] or 0.0 for key, value in found.items()}


def test_a_deformation_is_undone() -> None:
    """Of the augmentation, contrast included; another image stays unlike."""
    image, other = _heads(2, 0, slices=1).images
    changed = augment(image.expand(8, -1, -1, -1), AUGMENTATION, False, _random(0))[:, 0]
    pair = torch.stack([image[0], other[0]]).expand(8, -1, -1, -1)
    before, after = (register(changed, pair, 6, steps)[0] for steps in (0, 10))
    assert (after[:, 0] < 0.5 * before[:, 0]).all() and (after[:, 0] < 0.5 * after[:, 1]).all()


def test_an_image_is_at_no_distance_from_itself_whatever_its_contrast() -> None:
    image = _heads(1, 0, slices=1).images[:, 0]
    light = 0.1 + 0.8 * image
    assert register(light, image[None], 6, 0)[0].item() == pytest.approx(0.0, abs=1e-2)


def test_exact_copies_mirrored_ones_too_are_copies_and_other_people_are_not() -> None:
    training, held_out, others = _heads(8, 0), _heads(8, 1), _heads(8, 2)
    copied = _scores(training.images.flip(-1), training, held_out)
    assert copied["nearest"] < 0.01 and copied["copies"] == copied["flagged"] == 1.0
    fresh = _scores(others.images, training, held_out)
    assert fresh["nearest"] == pytest.approx(1.0, abs=0.1)
    assert fresh["copies"] == 0 and fresh["flagged"] < 0.5
    assert copied["membership"] == 1 and fresh["membership"] == pytest.approx(0.5, abs=0.2)
    assert fresh["copies_found"] > 0.9 and fresh["families"] == 8


def test_scores_repeat_by_their_seed_and_need_two_families_on_either_side() -> None:
    training, held_out = _heads(3, 0), _heads(2, 1)
    samples = _heads(3, 2).images
    assert _scores(samples, training, held_out) == _scores(samples, training, held_out)
    for pair in ((training, _heads(1, 1)), (_heads(1, 0), held_out)):
        with pytest.raises(ValueError, match="two training and two held-out"):
            memorisation(samples, *pair, AUGMENTATION, True, 0)


@pytest.fixture(scope="module")
def people(oasis: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Slices, Slices]:
    """Slices at 64² of twelve OASIS families, and of the nine others."""
    config = PrepareConfig(
        name="oasis", source="hcp", root=str(oasis), subjects_table=str(oasis / "subjects.csv"),
        size=64, spacing_mm=3.2, slice_spacing_mm=2.0, min_brain_area=0.5,
    )  # fmt: skip
    store = prepare(config, tmp_path_factory.mktemp("oasis")).store
    data = SliceDataset(store, store.subjects())
    names = [data.subjects[subject].family for subject in data.subject_of]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    families = torch.tensor([numbers[name] for name in names])
    images, first = data.__getitems__(range(len(data))), families < 12
    return Slices(images[first], families[first]), Slices(images[~first], families[~first])


def _without(people: Slices, number: int, families: int) -> tuple[Slices, Slices]:
    """Some families apart from the rest."""
    apart = (people.families >= number) & (people.families < number + families)
    return tuple(Slices(people.images[p], people.families[p]) for p in (apart, ~apart))


@pytest.mark.slow
def test_of_planted_deformed_copies_95_of_100_are_found_at_5_of_100_false_alarms(
    people: tuple[Slices, Slices],
) -> None:
    """Those that the scores plant and others, which also tell members from others."""
    training, held_out = people
    copies = augment(training.images[::4], AUGMENTATION, True, _random(2))
    found = _scores(copies, training, held_out)
    assert min(found["copies_found"], found["flagged"]) >= 0.95
    assert found["nearest"] < 0.7 and found["membership"] > 0.65


@pytest.mark.slow
def test_slices_of_unseen_people_pass(people: tuple[Slices, Slices]) -> None:
    training, held_out = people
    unseen, others = _without(held_out, 12, 3)
    found = _scores(unseen.images, training, others)
    assert found["flagged"] < 0.15 and found["nearest"] == pytest.approx(1.0, abs=0.1)
    assert found["copies"] == 0 and 0.3 < found["membership"] < 0.6
