"""The prior is fitted to what the training images' latents are."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from data_prep.store import Store
from pipeline.data.config import AugmentationConfig
from pipeline.data.slices import SliceDataset
from pipeline.fits.prior import Candidates, fit, groups, weaker
from pipeline.models.config import Level, ModelConfig, PriorConfig
from pipeline.models.vae import VAE

SETTINGS = PriorConfig(pieces=10, subjects=3, images=40)


def _nothing(_: float, __: str) -> None: ...


def _lookalikes() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of three kinds, told apart by their brightness, and their four subjects."""
    subjects = torch.arange(4).repeat(30)
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(3, (120,), generator=generator)
    images = 0.3 * kind[:, None, None, None] + 0.1 * torch.rand(120, 1, 32, 32, generator=generator)
    return images, subjects


def test_a_group_is_of_lookalikes_of_different_subjects() -> None:
    images, subjects = _lookalikes()
    rows = groups(images.flatten(1), subjects, SETTINGS)
    assert rows.shape == (10, 3)
    kind = (images.mean(dim=(1, 2, 3)) / 0.3).floor()
    for row in rows:
        assert len(set(subjects[row].tolist())) == 3
        assert len(set(kind[row].tolist())) == 1
    assert torch.equal(rows, groups(images.flatten(1), subjects, SETTINGS))


@pytest.mark.parametrize(("people", "members"), [(2, 2), (1, 2)])
def test_fewer_subjects_make_smaller_groups(people: int, members: int) -> None:
    images, subjects = _lookalikes()
    rows = groups(images.flatten(1), subjects % people, SETTINGS)
    assert rows.shape == (10, members)
    assert all(len(set(row.tolist())) == members for row in rows)
    assert all(len(set((subjects % people)[row].tolist())) == people for row in rows)


OFF = AugmentationConfig(enabled=False)


def test_candidates_are_every_training_slice_equally_often(tiny_store: Store) -> None:
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    settings = dataclasses.replace(SETTINGS, images=5 * len(data))  # in two batches
    found = Candidates(data, settings, OFF, False)
    assert found.subjects.bincount().tolist() == [30, 30, 30]
    averaged = found.averaged(_nothing)
    whole = functional.avg_pool2d(data.__getitems__(range(len(data))), 4).flatten(1)
    nearest = torch.cdist(averaged, whole).argmin(dim=1)
    assert nearest.bincount().tolist() == [5] * len(data)
    assert torch.equal(torch.from_numpy(data.subject_of)[nearest], found.subjects)


def test_a_candidate_is_the_same_every_time(tiny_store: Store) -> None:
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    settings = dataclasses.replace(SETTINGS, images=80)
    found = Candidates(data, settings, AugmentationConfig(), True)
    averaged = found.averaged(_nothing)
    wanted = torch.tensor([1, 5, 63, 64, 79])
    indices, images = (torch.cat(c) for c in zip(*found.some(wanted), strict=True))
    assert torch.equal(indices, wanted)
    assert torch.equal(functional.avg_pool2d(images, 4).flatten(1), averaged[wanted])
    # The same slice of a later round is another deformation.
    assert torch.cdist(averaged, averaged).fill_diagonal_(1).min() > 0


def test_a_piece_is_made_of_its_groups_posteriors(tiny_store: Store) -> None:
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    model = ModelConfig(levels=[Level(4, 2), Level(8, 1)], width=4, max_width=8)
    vae = VAE(tiny_store.image_shape, model).eval()
    found = Candidates(data, dataclasses.replace(SETTINGS, images=80), OFF, False)
    rows = torch.tensor([[14, 7, 70], [3, 7, 66]])  # a slice may be in two groups
    prior = fit(vae, found, rows, SETTINGS)
    assert prior.sizes == {"pieces": 2, "rank": 2} and prior.latent_size == 96
    for piece, row in enumerate(rows):
        images = torch.cat([image for _, image in found.some(row.sort()[0])])
        posterior = vae.encode(images)
        torch.testing.assert_close(prior.centres[piece], posterior.mean.mean(dim=0))
        spread = prior.deviations[piece].square()
        torch.testing.assert_close(spread, posterior.log_variance.exp().mean(dim=0))


def test_a_weaker_augmentation_has_smaller_ranges() -> None:
    whole = AugmentationConfig()
    assert weaker(whole, 1.0) == whole
    half = weaker(whole, 0.5)
    assert half.rotation_degrees == 5.0 and half.gain == 0.05
    assert half.elastic_points == whole.elastic_points
