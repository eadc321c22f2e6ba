"""Laws of kernel and Fréchet distance, against torchmetrics and scipy."""

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.kid import KernelInceptionDistance

from pipeline.metrics import distribution
from pipeline.metrics.distribution import ImageSets, frechet_distance, kernel_distance

both = pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
Distance = Callable[..., float]


def _features(count: int, size: int = 12, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(99))
    return 0.2 * (torch.randn(count, size, generator=generator) @ mixing).relu().double() + shift


def _torchmetrics(x: torch.Tensor, y: torch.Tensor) -> float:
    """KID of whole sets by torchmetrics, whose network gives back the features."""

    class Given(torch.nn.Module):
        num_features = x.shape[1]

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features

    metric = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=len(x))
    metric.update(x, real=True)
    metric.update(y, real=False)
    return metric.compute()[0].item()


def test_kernel_distance_is_torchmetrics_and_of_unequal_sets_near_that_of_all_images() -> None:
    x, y = _features(15), _features(15, seed=1, shift=0.3)
    assert kernel_distance(x, y) == pytest.approx(_torchmetrics(x, y), rel=1e-10)
    x, y = _features(60), _features(150, seed=1, shift=0.5)
    whole = np.mean([_torchmetrics(x, part) for part in (y[:60], y[60:120], y[90:])])
    assert kernel_distance(x, y) == pytest.approx(whole, rel=0.05)
    assert kernel_distance(x, y) == kernel_distance(x, y) != kernel_distance(x, y, seed=1)


@pytest.mark.parametrize("count", [2, 40, 1000, 1100])
def test_a_set_paired_with_itself_is_at_zero_at_every_size(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "SUBSETS", 3)
    x = _features(count)
    assert kernel_distance(x, x, paired=True) == pytest.approx(0.0, abs=1e-6)
    if count < 100:  # what pairing is for
        assert kernel_distance(x, x) < -1e-3
    with pytest.raises(ValueError, match="one size"):
        kernel_distance(x, torch.cat([x, x]), paired=True)


def test_the_distance_of_pairs_does_not_depend_on_how_many_there_are() -> None:
    """In the mean over many small sets as in one large set."""
    x = _features(900)
    y = 0.7 * x
    whole = kernel_distance(x, y, paired=True)
    small = [kernel_distance(*p, paired=True) for p in zip(x.split(20), y.split(20), strict=True)]
    error = np.std(small) / len(small) ** 0.5
    assert abs(np.mean(small) - whole) < 3 * error < 0.3 * whole


def test_subsets_are_taken_of_more_than_a_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "SUBSETS", 2)
    x, y = _features(1001), _features(1001, seed=1, shift=0.5)
    assert kernel_distance(x, y) != kernel_distance(x, y, seed=1)
    whole = kernel_distance(x[:1000], y[:1000])
    assert kernel_distance(x[:1000], y[:1000], seed=1) == pytest.approx(whole, rel=1e-9)


def test_frechet_distance_is_that_of_the_gaussians() -> None:
    x, y = _features(80), _features(120, seed=1, shift=0.3)
    one, two = (np.cov(features.numpy(), rowvar=False) for features in (x, y))
    root = np.real(sqrtm(one @ two))
    expected = (x.mean(0) - y.mean(0)).square().sum().item() + np.trace(one + two - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)
    few = _features(10, size=40)  # fewer than features
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-3)


@both
def test_both_are_symmetric_know_no_order_and_draw_nothing(distance: Distance) -> None:
    before = torch.get_rng_state()
    x, y = _features(30), _features(30, seed=1, shift=0.3)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-6)
    assert distance(x, y) == pytest.approx(distance(x.flip(0), y.roll(7, 0)), rel=1e-6)
    assert torch.equal(before, torch.get_rng_state())


@both
def test_no_set_of_features_is_refused(distance: Distance) -> None:
    good = _features(5)
    for bad in (good[:1], good[0], good.long()):
        with pytest.raises(ValueError, match="at least 2"):
            distance(good, bad)
    with pytest.raises(ValueError, match="finite"):
        distance(good, good * float("nan"))
    with pytest.raises(ValueError, match="differ in number"):
        distance(good, good[:, :3])


def test_sets_are_scored_against_the_originals_and_few_images_are_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data, reconstruction, sample = torch.rand(3, 12, 16).double()
    sets = ImageSets(16, {"kid": "kid_x", "frechet": "fd_x"})
    for part in data.split(5):
        sets.add("data", part)
    sets.add("reconstruction", reconstruction)
    sets.add("sample", sample[:6])
    with caplog.at_level(logging.WARNING):
        scores = sets.scores(seed=3)
    assert list(scores) == ["kid_x", "fd_x", "sample_kid_x", "sample_fd_x"]
    assert all(score["low"] is None and score["high"] is None for score in scores.values())
    assert scores["kid_x"]["mean"] == kernel_distance(data, reconstruction, 3, paired=True)
    assert scores["fd_x"]["mean"] == frechet_distance(data, reconstruction)
    assert scores["sample_kid_x"]["mean"] == kernel_distance(data, sample[:6], 3)
    (record,) = caplog.records
    assert "12 of data" in record.getMessage() and "6 of sample" in record.getMessage()


def test_one_image_alone_has_no_score() -> None:
    sets = ImageSets(16, {"kid": "kid_x"})
    sets.add("data", torch.rand(20, 16))
    sets.add("sample", torch.rand(1, 16))
    assert sets.scores(seed=0)["sample_kid_x"]["mean"] is None
