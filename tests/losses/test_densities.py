"""Densities: what they are equal to, and that they integrate to one."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special
from torch import Tensor
from torch.distributions import Laplace, MultivariateNormal

import pipeline.losses.base as base
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.densities import FourierGaussian, Robust, log_partition, rho
from pipeline.losses.registry import build_term


def _pair(*shape: int, seed: int = 0, error: float = 0.1) -> tuple[Tensor, Tensor]:
    """Images and reconstructions with correlated errors, float64."""
    generator = torch.Generator().manual_seed(seed)
    images, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return images, images + error * (noise + 0.5 * noise.roll(1, -1))


def _term(name: str, shape: tuple[int, ...], scale: str | float = "optimal"):
    channels, height, width = shape
    config = LikelihoodConfig(term=name, scale=scale)  # type: ignore[arg-type]
    return build_term(config, (channels, height, width)).double()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 6)])
def test_laplace_is_the_laplace_distribution(shape: tuple[int, ...]) -> None:
    images, reconstructions = _pair(4, *shape)
    found = _term("laplace", shape, 0.3)(images, reconstructions, None)
    expected = -Laplace(reconstructions, 0.3).log_prob(images).sum(dim=(1, 2, 3))
    torch.testing.assert_close(found.value, expected, rtol=1e-12, atol=0)


def test_the_optimal_laplace_scale_is_the_mean_absolute_error() -> None:
    images, reconstructions = _pair(4, 1, 8, 8)
    term = _term("laplace", (1, 8, 8))
    found = term(images, reconstructions, None)
    error = (images - reconstructions).abs().mean().item()
    assert found.scale.item() == pytest.approx(error)
    assert found.value.mean().item() == pytest.approx(64 * (1 + math.log(2 * error)))
    for factor in (0.9, 1.1):
        other = _term("laplace", (1, 8, 8), factor * error)(images, reconstructions, None)
        assert other.value.mean() > found.value.mean()
    later = term.eval()(images, images, None)
    assert later.scale.item() == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "quantity"), [("laplace", "mean absolute"), ("gaussian", "mean square")]
)
def test_processes_average_what_the_optimum_is_the_mean_of(
    name: str, quantity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(base, "mean_over_processes", lambda value: seen.append(value) or value)
    images, reconstructions = _pair(4, 1, 8, 8)
    _term(name, (1, 8, 8))(images, reconstructions, None)
    error = images - reconstructions
    expected = error.abs().mean() if quantity == "mean absolute" else error.square().mean()
    torch.testing.assert_close(seen[0], expected)


# --- robust


def _published_rho(x: np.ndarray | float, shape: float) -> np.ndarray | float:
    """Barron 2019, equation 1, as it stands there."""
    rest = abs(shape - 2)
    return rest / shape * ((np.square(x) / rest + 1) ** (shape / 2) - 1)


@pytest.mark.parametrize("shape", [0.01, 0.5, 1.0, 1.5, 1.99])
def test_rho_is_the_published_formula(shape: float) -> None:
    x = np.linspace(-30, 30, 101)
    found = rho(torch.from_numpy(x), torch.tensor(shape, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), _published_rho(x, shape), rtol=1e-10, atol=1e-12)


def test_rho_is_exact_in_single_precision_near_the_ends() -> None:
    x = torch.tensor([1e-3, 0.1, 1.0, 10.0])
    for shape in (1e-3, 2 - 1e-3):
        found = rho(x, torch.tensor(shape))
        expected = rho(x.double(), torch.tensor(shape).double())
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [1e-3, 0.1, 0.5, 1.0, 1.5, 1.9, 1.999])
def test_the_partition_function_is_the_integral(shape: float) -> None:
    """By another quadrature: x = tan u."""

    def density(u: float) -> float:
        return math.exp(-float(_published_rho(math.tan(u), shape))) / math.cos(u) ** 2

    expected = 2 * integrate.quad(density, 0, math.pi / 2, epsabs=1e-12, epsrel=1e-12)[0]
    found = log_partition(torch.tensor(shape, dtype=torch.float64)).exp().item()
    assert found == pytest.approx(expected, rel=1e-7)


def test_the_partition_function_is_the_published_one_where_it_has_a_name() -> None:
    """Cauchy, Charbonnier, Gauss: Barron 2019, section 2."""
    for shape, expected in ((1.0, 2 * math.e * special.k1(1)), (2 - 1e-9, math.sqrt(2 * math.pi)),
                            (1e-9, math.sqrt(2) * math.pi)):  # fmt: skip
        found = log_partition(torch.tensor(shape, dtype=torch.float64)).exp().item()
        assert found == pytest.approx(expected, rel=1e-6)


def test_the_partition_function_has_the_slope_of_its_values() -> None:
    shape = torch.tensor([0.2, 1.0, 1.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_partition, shape)


def _robust(alpha: float, scale: float | str, channels: int = 1) -> Robust:
    term = _term("robust", (channels, 1, 1), scale)
    with torch.no_grad():
        term.logit.fill_(math.log((alpha - 1e-3) / (2 - 1e-3 - alpha)))
    return term


@pytest.mark.parametrize("alpha", [0.3, 1.0, 1.7])
def test_the_robust_density_integrates_to_one(alpha: float) -> None:
    term = _robust(alpha, 0.2)
    assert term.shape.item() == pytest.approx(alpha)

    def density(u: float) -> float:
        error = torch.full((1, 1, 1, 1), math.tan(u), dtype=torch.float64)
        value = term(error, torch.zeros_like(error), None).value
        return math.exp(-value.item()) / math.cos(u) ** 2

    with torch.no_grad():
        total = 2 * integrate.quad(density, 0, math.pi / 2, epsrel=1e-8)[0]
    assert total == pytest.approx(1.0, rel=1e-6)


def test_the_robust_shape_and_scale_of_each_channel_find_its_noise() -> None:
    """Gaussian noise in one channel, heavy tails in the other: α and c follow by descent."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(16, 2, 16, 16, generator=generator)
    tail = torch.randn(16, 16, 16, generator=generator).abs().clamp_min(0.05)
    noise = 0.05 * normal
    noise[:, 1] /= tail
    term = build_term(LikelihoodConfig(term="robust"), (2, 16, 16))
    assert isinstance(term, Robust)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.1)
    first = last = math.nan
    for _ in range(80):
        loss = term(noise, torch.zeros_like(noise), None).value.mean() / 512
        first, last = (loss.item() if math.isnan(first) else first), loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gauss, cauchy = term.shape.tolist()
    assert last < first and gauss > 1.5 and cauchy < 0.6
    assert term.log_scale[0].exp().item() == pytest.approx(0.05, rel=0.25)


def test_a_fixed_robust_scale_is_not_learned() -> None:
    assert [name for name, _ in _robust(1.0, 0.2).named_parameters()] == ["logit"]
    assert {name for name, _ in _robust(1.0, "optimal").named_parameters()} == {
        "logit", "log_scale",
    }  # fmt: skip


# --- fourier_gaussian


def _radial_variances(errors: np.ndarray) -> np.ndarray:
    """The mean power of each frequency's radial bin, on the full spectrum, by definition."""
    height, width = errors.shape[-2:]
    power = np.abs(np.fft.fft2(errors, norm="ortho")) ** 2
    power = power.mean(axis=(0, 1))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    bins = np.round(radius * max(height, width)).astype(int)
    out = np.empty_like(power)
    for index in np.unique(bins):
        out[bins == index] = power[bins == index].mean()
    return out


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 6), (1, 7, 8), (1, 8, 7)])
def test_fourier_gaussian_is_the_normal_distribution_with_that_covariance(
    shape: tuple[int, ...],
) -> None:
    images, reconstructions = _pair(6, *shape)
    errors = (images - reconstructions).numpy()
    variances = _radial_variances(errors)
    _, height, width = shape
    basis = np.eye(height * width).reshape(-1, height, width)
    covariance = np.fft.ifft2(variances * np.fft.fft2(basis)).real.reshape(height * width, -1)
    normal = MultivariateNormal(
        torch.zeros(height * width, dtype=torch.float64), torch.from_numpy(covariance)
    )
    expected = -normal.log_prob(torch.from_numpy(errors).flatten(2)).sum(dim=1)
    term = _term("fourier_gaussian", shape)
    found = term(images, reconstructions, None)
    torch.testing.assert_close(found.value, expected, rtol=1e-8, atol=1e-8)
    assert found.scale.item() == pytest.approx(math.sqrt(variances.mean()))
    later = term.eval()(images, reconstructions, None)
    torch.testing.assert_close(later.value, expected, rtol=1e-6, atol=1e-6)


def test_fourier_gaussian_is_never_worse_than_one_variance_for_all() -> None:
    images, reconstructions = _pair(6, 1, 16, 16)
    found, plain = (
        _term(name, (1, 16, 16))(images, reconstructions, None).value.mean().item()
        for name in ("fourier_gaussian", "gaussian")
    )
    assert found < plain - 5


def test_the_fourier_variances_are_running_in_evaluation() -> None:
    term = _term("fourier_gaussian", (1, 8, 8))
    assert isinstance(term, FourierGaussian)
    for error in (0.1, 0.4):
        term(*_pair(6, 1, 8, 8, error=error), None)
    before = term.scale.running.clone()
    one, two = (term.eval()(*_pair(6, 1, 8, 8, error=e), None).scale for e in (0.1, 7.0))
    assert torch.equal(one, two) and torch.equal(before, term.scale.running)
    first = torch.log(torch.tensor(0.4 / 0.1)) * 2 * 0.02  # of the later batch's logarithm
    once = _term("fourier_gaussian", (1, 8, 8))
    once(*_pair(6, 1, 8, 8, error=0.1), None)
    torch.testing.assert_close(before - once.scale.running, first.double().expand_as(before))


def test_a_fixed_scale_contradicts_fitted_variances() -> None:
    with pytest.raises(ValueError, match=r"likelihood\.scale must be optimal"):
        _term("fourier_gaussian", (1, 8, 8), 0.1)
