"""Sampling masks: whole columns, the centre always, as many as the acceleration says, seeded."""

import pytest
import torch

from pipeline.analysis.inverse.masks import Kind, cartesian_mask, centre_columns, sampled_centre

KINDS: list[Kind] = ["variable_density", "equispaced"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 64), (33, 47), (32, 31)])
@pytest.mark.parametrize("acceleration", [2, 4, 5.5, 8])
def test_it_holds_the_centre_and_the_asked_number_of_columns(
    kind: Kind, shape: tuple[int, int], acceleration: float
) -> None:
    mask = cartesian_mask(shape, acceleration, 0.08, kind)
    assert mask.shape == shape
    assert (mask == mask[:1]).all()
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask[0].sum() == round(shape[1] / acceleration)
    assert mask[0, list(centre_columns(shape[1], 0.08))].all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: Kind) -> None:
    first, again, other = (cartesian_mask((64, 64), 3, 0.08, kind, seed) for seed in (1, 1, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_low_frequencies_are_measured_more_often() -> None:
    masks = torch.stack([cartesian_mask((1, 64), 4, seed=seed)[0] for seed in range(200)])
    density = masks.mean(dim=0)
    assert density[20:29].mean() > 2 * density[:9].mean()


def test_no_acceleration_measures_all() -> None:
    assert cartesian_mask((5, 7), 1).all()


@pytest.mark.parametrize(
    ("acceleration", "centre", "words"),
    [(0.5, 0.1, "acceleration"), (8, 0.5, "centre_fraction"), (4, 0.0, "centre_fraction")],
)
def test_masks_that_do_not_exist(acceleration: float, centre: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cartesian_mask((64, 64), acceleration, centre)


def test_the_measured_centre_is_found() -> None:
    columns = torch.tensor([0, 1, 0, 1, 1, 1, 0, 0.0])
    assert sampled_centre(columns.expand(4, 8)) == 3
    assert sampled_centre(torch.zeros(4, 8)) == 0
