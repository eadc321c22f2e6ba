"""What a package computes: the likelihood it was trained under, and nothing that trains."""

import pytest
import torch
from tiny_packages import MODEL, make_package
from torch import Tensor

from pipeline.blur.likelihood import gaussian_nll
from pipeline.errors import InputError
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.registry import TERMS
from pipeline.package import DecoderPackage
from pipeline.package.package import DENSITIES
from pipeline.training.objective import Objective

GAUSSIANS = ("blur", "gaussian", "fourier_gaussian")
FLOOR = 0.01


def _pair(package: DecoderPackage, batch: int = 3) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    image = torch.rand(batch, *package.image_shape, generator=random)
    return image, torch.randn(batch, package.latent_size, generator=random)


@pytest.mark.parametrize("term", [name for name, term in TERMS.items() if term.density])
def test_the_likelihood_is_that_of_training(term: str) -> None:
    package = make_package(term)
    objective = Objective((1, 32, 32), MODEL, LikelihoodConfig(term=term, kernel_size=5)).eval()
    objective.vae.load_state_dict(package.vae.state_dict())
    objective.term.load_state_dict(package.density.state_dict())
    if package.kernel_network is not None:
        objective.kernel_network.load_state_dict(package.kernel_network.state_dict())
    image, latent = _pair(package)
    parts = objective.elbo(image, mean_latent=True)
    posterior = package.encode(image)
    for value, expected in (
        (posterior.mean, parts.latent),
        (package.decode(posterior.mean), parts.reconstruction),
        (package.log_likelihood(image, posterior.mean), -parts.distortion),
        (posterior.rate(), parts.rate),  # there the sum of the levels' rates
    ):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    assert package.scale == pytest.approx(parts.scale.item(), rel=1e-5)
    if term not in GAUSSIANS:
        with pytest.raises(InputError, match="no precision spectrum"):
            package.precision(latent)


@pytest.mark.parametrize("term", GAUSSIANS)
@pytest.mark.parametrize("channels", [1, 3])
def test_precision_and_scale_make_likelihood_and_noise(term: str, channels: int) -> None:
    package = make_package(term, channels=channels)
    image, latent = _pair(package)
    precision = package.precision(latent)
    assert precision.shape == (3, 1, 32, 17) and (precision > 0).all()
    nats = gaussian_nll(image - package.decode(latent), precision, package.scale)
    torch.testing.assert_close(-nats, package.log_likelihood(image, latent), rtol=1e-5, atol=1e-2)
    clean, noisy = (
        package.sample(64, torch.Generator().manual_seed(3), noise=noise) for noise in (False, True)
    )
    assert clean.min() >= 0 and clean.max() <= 1
    random = torch.Generator().manual_seed(3)
    precision = package.precision(torch.randn(64, package.latent_size, generator=random))
    residual = torch.fft.fft2(noisy - clean, norm="ortho")[..., :17].abs().square()
    assert (residual * precision).mean() == pytest.approx(package.scale**2, rel=0.02)


@pytest.mark.parametrize(
    ("term", "floor"), [*((term, None) for term in DENSITIES), ("blur", FLOOR), ("ssim", FLOOR)]
)
def test_the_likelihood_has_gradients_in_image_and_latent_and_no_parameter_has(
    term: str, floor: float | None
) -> None:
    package = make_package(term, floor=floor)
    image, latent = _pair(package)
    image.requires_grad_()
    latent.requires_grad_()
    package.log_likelihood(image, latent).sum().backward()
    assert image.grad.abs().sum() > 0 and latent.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in package.parameters())


def test_the_prior_is_the_standard_normal() -> None:
    package = make_package()
    _, latent = _pair(package)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(latent).sum(dim=1)
    torch.testing.assert_close(package.log_prior(latent), expected)


def test_the_fitted_law_is_used_where_there_is_one_and_the_terms_when_asked_for() -> None:
    package = make_package(floor=FLOOR)
    image, latent = _pair(package)
    own, fitted = package._term_law(latent), package.residual(package.decode(latent))
    residual = image - package.decode(latent)
    for which, law in (("fitted", fitted), ("term", own)):
        assert which == "term" or package.which == which
        package.which = which
        nats = package.log_likelihood(image, latent)
        torch.testing.assert_close(-nats, law.nll(residual), rtol=1e-5, atol=1e-2)
        deviation = package.standard_deviation(latent)
        torch.testing.assert_close(deviation, law.standard_deviation(image.shape))
    assert (fitted.deviation > FLOOR).all() and not (own.deviation > 1).any()


def test_a_package_without_a_fitted_law_says_so() -> None:
    package = make_package()
    del package.metadata["residual"]  # as older versions wrote them
    older = DecoderPackage(package.metadata)
    assert older.which == "term" and older.residual is None
    older.which = "fitted"
    with pytest.raises(InputError, match="no fitted law"):
        older.standard_deviation(_pair(package)[1])
    with pytest.raises(InputError, match="closed form"):
        make_package("robust").law(_pair(package)[1])


def test_images_come_in_a_scanners_unit_where_it_is_said() -> None:
    package = make_package()
    _, latent = _pair(package)
    unit = package.decode(latent)
    image = package.decode(latent, intensities="scanner", low=100.0, high=1100.0)
    torch.testing.assert_close(image[unit > 0.01], 100 + 1000 * unit[unit > 0.01])
    for wrong in ({}, {"low": 1.0}, {"low": 2.0, "high": 1.0}):
        with pytest.raises(ValueError, match="low and high"):
            package.decode(latent, intensities="scanner", **wrong)


def test_training_mode_leaves_the_likelihood_alone() -> None:
    package = make_package()
    before = package.scale
    package.train().log_likelihood(*_pair(package))
    assert not package.training and package.scale == before


def test_levels_that_are_closed_stay_closed_in_a_package() -> None:
    """A best checkpoint may come from before the last level opened."""
    package = make_package()
    image, latent = _pair(package)
    whole = package.decode(latent)
    package.vae.decoder.opened[1] = 0
    assert not torch.equal(package.decode(latent), whole)
    assert package.encode(image).mean[:, 32:].abs().max() == 0  # the coarse level: 2·4·4
    again = DecoderPackage(package.metadata)
    again.load_state_dict(package.state_dict())
    assert torch.equal(again.decode(latent), package.decode(latent))


def test_the_kernel_is_normalised_and_absent_without_a_network() -> None:
    package = make_package()
    _, latent = _pair(package)
    assert package.kernel(latent).shape == (3, 1, 5, 5)
    torch.testing.assert_close(package.kernel(latent).sum(dim=(1, 2, 3)), torch.ones(3))
    gaussian = make_package("gaussian", scale=0.2)
    assert gaussian.kernel(latent) is None and gaussian.scale == pytest.approx(0.2)


@pytest.mark.parametrize("term", sorted(set(TERMS) - set(DENSITIES)))
def test_a_distance_decodes_and_refuses_to_be_a_likelihood(term: str) -> None:
    package = make_package(term)
    image, latent = _pair(package)
    assert package.decode(latent).shape == image.shape
    for ask in (
        lambda: package.log_likelihood(image, latent),
        lambda: package.precision(latent),
        lambda: package.scale,
        lambda: package.sample(2, noise=True),
    ):
        with pytest.raises(InputError, match=f"{term} is no likelihood"):
            ask()


def test_other_shapes_are_refused() -> None:
    package = make_package()
    image, latent = _pair(package)
    with pytest.raises(ValueError, match="latents must be"):
        package.decode(latent[:, :7])
    with pytest.raises(ValueError, match="images must be"):
        package.encode(image[..., :16])
