"""The prior is fitted to the training images' latents."""

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
OFF = AugmentationConfig(enabled=False)


@pytest.mark.parametrize(("people", "members"), [(4, 3), (2, 2), (1, 2)])
def test_a_group_is_of_lookalikes_of_different_subjects(people: int, members: int) -> None:
    """Of images of three kinds, told apart by their brightness."""
    kind, subjects = torch.randint(3, (120,)), torch.arange(4).repeat(30) % people
    images = 0.3 * kind[:, None] + 0.1 * torch.rand(120, 64)
    rows = groups(images, subjects, SETTINGS)
    assert rows.shape == (10, members) and torch.equal(rows, groups(images, subjects, SETTINGS))
    for row in rows:
        assert len(set(row.tolist())) == members
        assert len(set(subjects[row].tolist())) == min(people, members)
        assert len(set(kind[row].tolist())) == 1


def test_candidates_are_every_training_slice_equally_often(tiny_store: Store) -> None:
    """Each the same every time; a slice of a later round is another deformation."""
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    settings = dataclasses.replace(SETTINGS, images=5 * len(data))  # in two batches
    plain = Candidates(data, settings, OFF, False)
    images = torch.cat([plain.batch(number) for number in range(len(plain))]).flatten(1)
    nearest = torch.cdist(images, data.__getitems__(range(len(data))).flatten(1)).argmin(dim=1)
    assert nearest.bincount().tolist() == [5] * len(data)
    assert torch.equal(torch.from_numpy(data.subject_of)[nearest], plain.subjects)
    bent = Candidates(data, settings, AugmentationConfig(), True)
    images = torch.cat([bent.batch(number) for number in range(len(bent))])
    wanted = torch.tensor([1, 5, 63, 64, 79])
    assert torch.equal(torch.cat([*bent.some(wanted)]), images[wanted])
    coarse = functional.avg_pool2d(images, 4).flatten(1)
    assert torch.cdist(coarse, coarse).fill_diagonal_(1).min() > 0


def test_a_piece_is_made_of_its_groups_posteriors(tiny_store: Store) -> None:
    data = SliceDataset(tiny_store, tiny_store.subjects("train"))
    model = ModelConfig(levels=[Level(4, 2), Level(8, 1)], width=4, max_width=8)
    vae = VAE(tiny_store.image_shape, model).eval()
    candidates = Candidates(data, dataclasses.replace(SETTINGS, images=80), OFF, False)
    rows = torch.tensor([[14, 7, 70], [3, 7, 66]])  # a slice may be in two groups
    prior = fit(vae, candidates, rows, SETTINGS)
    assert prior.sizes == {"pieces": 2, "rank": 2} and prior.latent_size == 96
    for piece, row in enumerate(rows):
        posterior = vae.encode(torch.cat([*candidates.some(row.sort()[0])]))
        torch.testing.assert_close(prior.centres[piece], posterior.mean.mean(dim=0))
        spread = prior.deviations[piece].square()
        torch.testing.assert_close(spread, posterior.log_variance.exp().mean(dim=0))


def test_a_weaker_augmentation_has_smaller_ranges() -> None:
    whole = AugmentationConfig()
    half = weaker(whole, 0.5)
    assert weaker(whole, 1.0) == whole
    assert half.rotation_degrees == 5.0 and half.gain == 0.05
    assert half.elastic_points == whole.elastic_points
