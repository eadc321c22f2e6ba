"""Back to the scanner's unit: the way there and back, and the dark surround."""

import numpy as np
import pytest
import torch

from pipeline.data.slices import DARK, to_scanner


def normalised(values: np.ndarray, inside: np.ndarray, low: float, high: float) -> np.ndarray:
    """What the preparation does."""
    return np.where(inside, np.clip((values - low) / (high - low), 0, 1), 0).astype(np.float32)


@pytest.mark.parametrize(("low", "high"), [(100.0, 1800.0), (-5.0, 5.0), (0.0, 1e-3)])
def test_there_and_back(low: float, high: float) -> None:
    random = np.random.default_rng(0)
    inside = np.zeros((4, 5, 6), bool)
    inside[1:3] = True
    scanner = np.where(inside, random.uniform(low, high, inside.shape), 0).astype(np.float32)
    unit = normalised(scanner, inside, low, high)
    for values in (unit, torch.from_numpy(unit)):
        back = np.asarray(to_scanner(values, low, high))
        assert (back[~inside] == 0).all()
        bright = unit > DARK
        np.testing.assert_allclose(back[bright], scanner[bright], atol=1e-5 * (high - low))
    again = normalised(back.astype(np.float32), inside, low, high)
    assert np.abs(again - unit).max() <= DARK or low < 0


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_a_pair_that_is_none_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low"):
        to_scanner(torch.rand(2, 2), low, high)
