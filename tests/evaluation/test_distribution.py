"""Laws of kernel and Fréchet distance, against torchmetrics and scipy."""

import logging

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from torchmetrics.image.kid import KernelInceptionDistance

from data_prep.store import Store
from pipeline.backbones import WeightsNotFound, probe
from pipeline.data.slices import SliceDataset
from pipeline.metrics import distribution
from pipeline.metrics.distribution import ImageSets, frechet_distance, kernel_distance
from pipeline.metrics.perceptual import PerceptualDistance


@pytest.fixture(scope="module")
def vgg() -> PerceptualDistance:
    try:
        return PerceptualDistance("vgg")
    except WeightsNotFound as error:
        pytest.skip(str(error))


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


def _frechet(x: np.ndarray, y: np.ndarray) -> float:
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(sqrtm(one @ two))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root))


def test_kernel_distance_of_whole_sets_is_torchmetrics() -> None:
    x, y = _features(15), _features(15, seed=1, shift=0.3)
    assert kernel_distance(x, y) == pytest.approx(_torchmetrics(x, y), rel=1e-10)


@pytest.mark.parametrize("count", [2, 5, 40, 1000, 1100])
def test_a_set_paired_with_itself_is_at_zero_at_every_size(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "SUBSETS", 3)
    x = _features(count)
    assert kernel_distance(x, x, paired=True) == pytest.approx(0.0, abs=1e-6)
    if count < 100:  # what pairing is for
        assert kernel_distance(x, x) < -1e-3


def test_the_distance_of_pairs_does_not_depend_on_how_many_there_are() -> None:
    """In the mean over many small sets as in one large set."""
    x = _features(900)
    y = 0.7 * x
    whole = kernel_distance(x, y, paired=True)
    small = [kernel_distance(*p, paired=True) for p in zip(x.split(20), y.split(20), strict=True)]
    error = np.std(small) / len(small) ** 0.5
    assert abs(np.mean(small) - whole) < 3 * error < 0.3 * whole


def test_pairs_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        kernel_distance(_features(5), _features(6), paired=True)


def test_kernel_distance_of_unequal_sets_is_near_that_of_all_images_and_repeats() -> None:
    x, y = _features(60), _features(150, seed=1, shift=0.5)
    found = kernel_distance(x, y)
    whole = np.mean([_torchmetrics(x, part) for part in (y[:60], y[60:120], y[90:])])
    assert found == pytest.approx(whole, rel=0.05)
    assert found == kernel_distance(x, y) != kernel_distance(x, y, seed=1)


def test_subsets_are_taken_of_more_than_a_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "SUBSETS", 2)
    x, y = _features(1001), _features(1001, seed=1, shift=0.5)
    assert kernel_distance(x, y) != kernel_distance(x, y, seed=1)
    assert kernel_distance(x[:1000], y[:1000]) == kernel_distance(x[:1000], y[:1000])
    assert kernel_distance(x[:1000], y[:1000], seed=1) == pytest.approx(
        kernel_distance(x[:1000], y[:1000]), rel=1e-9
    )


def test_two_draws_of_one_distribution_are_at_about_zero() -> None:
    x, y = _features(500), _features(500, seed=1)
    assert abs(kernel_distance(x, y)) < 0.03 * kernel_distance(x, y + 0.5)


def test_frechet_distance_is_that_of_the_gaussians() -> None:
    x, y = _features(80), _features(120, seed=1, shift=0.3)
    assert frechet_distance(x, y) == pytest.approx(_frechet(x.numpy(), y.numpy()), rel=1e-8)


def test_a_shift_alone_costs_its_square_and_equal_sets_nothing() -> None:
    x = _features(40)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-4)
    assert frechet_distance(x, x + 2.0) == pytest.approx(12 * 4.0, abs=1e-4)


def test_fewer_images_than_features_still_give_zero_for_equal_sets() -> None:
    x = _features(10, size=40)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
def test_both_are_symmetric_and_know_no_order(distance) -> None:  # type: ignore[no-untyped-def]
    x, y = _features(30), _features(30, seed=1, shift=0.3)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-6)
    assert distance(x, y) == pytest.approx(distance(x.flip(0), y.roll(7, 0)), rel=1e-6)


def test_the_runs_generator_does_not_notice() -> None:
    before = torch.get_rng_state()
    kernel_distance(_features(20), _features(30, seed=1))
    frechet_distance(_features(20), _features(30, seed=1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
def test_what_is_no_set_of_features_is_refused(distance) -> None:  # type: ignore[no-untyped-def]
    good = _features(5)
    for bad in (good[:1], good[0], good.long()):
        with pytest.raises(ValueError, match="at least 2"):
            distance(good, bad)
    with pytest.raises(ValueError, match="finite"):
        distance(good, good * float("nan"))
    with pytest.raises(ValueError, match="differ in number"):
        distance(good, good[:, :3])


def test_vgg_features_are_known_numbers_of_relu5_3(vgg: PerceptualDistance) -> None:
    """Measured here with the weights that reproduce the LPIPS authors' numbers."""
    features = vgg.features(probe()[0])
    assert features.shape == (1, 512) == (1, vgg.size) and (features >= 0).all()
    assert features.double().mean().item() == pytest.approx(0.432946, rel=1e-4)
    assert features.double().norm().item() == pytest.approx(35.06106, rel=1e-4)


def test_features_are_torchvisions_of_images_normalised_as_imagenets(
    vgg: PerceptualDistance,
) -> None:
    from torchvision.models import vgg16

    from pipeline.backbones import backbone_state

    layers = vgg16(weights=None).features.eval()
    state = {k.removeprefix("features."): v for k, v in backbone_state("vgg")[0].items()}
    layers.load_state_dict({k: v for k, v in state.items() if not k.startswith("classifier")})
    image = probe()[0]
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    normal = (image - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        expected = layers[:30](normal).mean(dim=(2, 3))
    torch.testing.assert_close(vgg.features(image), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("harm", ["blur", "noise"])
def test_more_blur_and_more_noise_are_further_away(
    vgg: PerceptualDistance, tiny_store: Store, harm: str
) -> None:
    data = SliceDataset(tiny_store, tiny_store.subjects())
    pictures = torch.stack([data[i] for i in range(len(data))])
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    features, scores = vgg.features(pictures), []
    for strength in (0.5, 1.0, 3.0):
        if harm == "blur":
            harmed = torch.from_numpy(gaussian_filter(pictures.numpy(), (0, 0, strength, strength)))
        else:
            harmed = (pictures + 0.1 * strength * noise).clamp(0, 1)
        other = vgg.features(harmed)
        scores.append((kernel_distance(features, other), frechet_distance(features, other)))
    for values in zip(*scores, strict=True):
        assert 0 < values[0] < values[1] < values[2]


class _Pixels:
    """A network whose features are the pixels."""

    size = 16

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def test_sets_are_scored_against_the_originals_and_few_images_are_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = torch.rand(3, 12, 1, 4, 4)
    sets = ImageSets(_Pixels(), {"kid": "kid_x", "frechet": "fd_x"})
    sets.add("data", images[0][:5])
    sets.add("data", images[0][5:])
    sets.add("reconstruction", images[1])
    sets.add("sample", images[2][:6])
    with caplog.at_level(logging.WARNING):
        scores = sets.scores(seed=3)
    data, reconstruction, sample = (part.flatten(1).double() for part in images)
    assert list(scores) == ["kid_x", "fd_x", "sample_kid_x", "sample_fd_x"]
    for interval in scores.values():
        assert interval["low"] is None and interval["high"] is None
    assert scores["kid_x"]["mean"] == kernel_distance(data, reconstruction, 3, paired=True)
    assert scores["fd_x"]["mean"] == frechet_distance(data, reconstruction)
    assert scores["sample_kid_x"]["mean"] == kernel_distance(data, sample[:6], 3)
    (record,) = caplog.records
    assert "12 of data" in record.getMessage() and "6 of sample" in record.getMessage()


def test_enough_images_are_not_warned_of_and_one_alone_has_no_score(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sets = ImageSets(_Pixels(), {"kid": "kid_x"})
    sets.add("data", torch.rand(20, 1, 4, 4))
    sets.add("reconstruction", torch.rand(20, 1, 4, 4))
    sets.add("sample", torch.rand(1, 1, 4, 4))
    scores = sets.scores(seed=0)
    assert scores["kid_x"]["mean"] is not None and scores["sample_kid_x"]["mean"] is None
    assert not caplog.records
