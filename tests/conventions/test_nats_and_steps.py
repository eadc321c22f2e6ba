"""Nats, bits and β of the bound; what clipping, learning rate and averaging do to a step."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, distributions

from pipeline.config import TrainingConfig
from pipeline.evaluation.evaluate import model_scores
from pipeline.fits.residual import factors_of
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import GaussianLaw, LaplaceLaw
from pipeline.losses.residual import ResidualLaw
from pipeline.models.config import Level, ModelConfig
from pipeline.models.vae import Posterior
from pipeline.training.control import RateController
from pipeline.training.objective import Objective
from pipeline.training.step import TrainingStep

MODEL = ModelConfig(
    levels=[Level(4, 2), Level(8, 1)], width=4, max_width=8, residual_blocks=0, kernel_hidden=8
)
SIGMA = 0.2
PIXELS = 3 * 32 * 32


def objective(term: str = "gaussian", scale: float = SIGMA) -> Objective:
    torch.manual_seed(0)
    likelihood = LikelihoodConfig(term=term, scale=scale, kernel_size=5)
    made = Objective((3, 32, 32), MODEL, likelihood)
    with torch.no_grad():  # a posterior that is not the prior
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def noise(count: int = 4) -> Tensor:
    return torch.randn(count, MODEL.latent_size, generator=torch.Generator().manual_seed(2))


def parts_by_hand(made: Objective) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood and KL of `images` at `noise`, nats, (4,) each, by distributions."""
    with torch.no_grad():
        found = made.vae.infer(images(), noise())
    own = distributions.Normal(found.posterior.mean, (0.5 * found.posterior.log_variance).exp())
    rate = distributions.kl_divergence(own, distributions.Normal(0, 1)).sum(dim=1)
    density = distributions.Normal(found.reconstruction, SIGMA).log_prob(images())
    return -density.sum(dim=(1, 2, 3)), rate


def test_the_loss_is_nats_a_pixel_value_and_beta_multiplies_the_rate_alone() -> None:
    made = objective()
    nll, rate = parts_by_hand(made)
    assert rate.min() > 1
    for beta in (0.0, 1.0, 3.0):
        loss, means = made(images(), noise(), beta=beta, warm_up=False)
        expected = (nll.mean() + beta * rate.mean()).item() / PIXELS
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert means["distortion"].item() == pytest.approx(nll.mean().item(), rel=1e-5)
        assert means["rate"].item() == pytest.approx(rate.mean().item(), rel=1e-4)
        total = (nll + rate).mean().item()  # whatever β is
        assert means["elbo"].item() == pytest.approx(-total, rel=1e-5)


def test_bits_a_dimension_are_minus_the_bound_over_log_2_and_all_channels() -> None:
    """Negative log-likelihood and rate, of intensities in [0,1]; lower is better."""
    made = objective().eval()
    made.vae.prior_latents = lambda count, generator=None: noise(count)  # type: ignore[method-assign]
    nll, rate = parts_by_hand(made)
    fitted = ResidualLaw((3, 32, 32), 0.01)
    with torch.no_grad():
        middle = made.vae.infer(images())
        scores = model_scores(made, images(), middle, torch.Generator(), fitted)
        at_noise = made.vae.infer(images(), noise()).reconstruction
        own = fitted(at_noise).nll(images() - at_noise)
    scores = {name: value.double() for name, value in scores.items()}
    expected = (nll + rate).double() / (PIXELS * math.log(2))
    torch.testing.assert_close(scores["elbo_bits_per_dim"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores["rate"], rate.double(), rtol=1e-4, atol=1e-4)
    expected = (own + rate).double() / (PIXELS * math.log(2))
    torch.testing.assert_close(scores["elbo_bits_per_dim_fitted"], expected, rtol=1e-5, atol=1e-6)


def test_a_posterior_s_rate_is_the_divergence_from_the_standard_normal() -> None:
    random = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 5, generator=random)
    posterior = Posterior(mean, log_variance)
    own = distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = distributions.kl_divergence(own, distributions.Normal(0, 1)).sum(dim=1)
    torch.testing.assert_close(posterior.rate(), expected)
    torch.testing.assert_close(posterior.at(torch.ones(3, 5)), mean + own.stddev)


def gradients(step: TrainingStep) -> Tensor:
    return torch.cat([p.grad.flatten() for p in step._learned if p.grad is not None])


def stepped(clip: float, term: str = "gaussian") -> tuple[TrainingStep, dict[str, float]]:
    settings = TrainingConfig(gradient_clip=clip, learning_rate=1e-3, device="cpu")
    step = TrainingStep(objective(term), settings)
    return step, step(images(), noise())


def test_a_gradient_longer_than_the_clip_is_shortened_to_it_and_not_turned() -> None:
    free, told = stepped(0.0)
    length = gradients(free).norm().item()
    assert length > 0.05
    assert told["gradient_norm"] == pytest.approx(length, rel=1e-5)
    clipped, told = stepped(length / 5)
    assert gradients(clipped).norm().item() == pytest.approx(length / 5, rel=1e-3)
    torch.testing.assert_close(gradients(clipped), gradients(free) / 5, rtol=1e-3, atol=1e-7)
    assert told["gradient_norm"] == pytest.approx(length, rel=1e-5)  # as it was before
    # Adam's first moment, a tenth of the gradient, is of the clipped one.
    state = clipped.optimizer.state
    moments = torch.cat([state[p]["exp_avg"].flatten() for p in clipped._learned if p in state])
    assert moments.norm().item() == pytest.approx(0.1 * length / 5, rel=1e-3)
    longer, _ = stepped(2 * length)
    torch.testing.assert_close(gradients(longer), gradients(free))


def test_the_kernel_network_s_gradient_is_not_clipped() -> None:
    def kernel_gradients(step: TrainingStep) -> Tensor:
        assert step.objective.kernel_network is not None
        parameters = step.objective.kernel_network.parameters()
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    free, clipped = (kernel_gradients(stepped(clip, "blur")[0]) for clip in (0.0, 1e-4))
    assert free.norm() > 1e-3
    torch.testing.assert_close(clipped, free)


def test_adam_s_first_step_is_as_long_as_the_learning_rate() -> None:
    """Of every number with a gradient."""
    settings = TrainingConfig(gradient_clip=0, learning_rate=1e-2, device="cpu")
    step = TrainingStep(objective(), settings)
    before = [p.detach().clone() for p in step._learned]
    step.set_learning_rate(0.1)
    step(images(), noise())
    for old, new in zip(before, step._learned, strict=True):
        assert new.grad is not None
        moved = new.grad.abs() > 1e-5
        change = (new - old).detach()[moved]
        expected = -1e-3 * new.grad[moved].sign()
        torch.testing.assert_close(change, expected, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize(("decay", "kept"), [(0.999, [0, 2 / 11, 3 / 12]), (0.2, [0, 2 / 11, 0.2])])
def test_the_average_s_memory_grows_up_to_its_decay(decay: float, kept: list[float]) -> None:
    """It begins with the first step's weights; after n it keeps (1 + n)/(10 + n), or the decay."""
    step = TrainingStep(objective(), TrainingConfig(ema_decay=decay, device="cpu"))
    for share in kept:
        before = [p.detach().clone() for p in step.averaged.vae.parameters()]
        step(images(), noise())
        for old, now, current in zip(
            before, step.averaged.vae.parameters(), step.objective.vae.parameters(), strict=True
        ):
            expected = share * old + (1 - share) * current.detach()
            torch.testing.assert_close(now.detach(), expected, rtol=1e-5, atol=1e-6)


def test_too_many_nats_make_the_rate_dearer() -> None:
    controller = RateController(beta=1.0, target=100.0)
    beta = 1.1**0.7
    assert controller.update(110.0) == pytest.approx(beta)
    assert controller.update(400.0) == pytest.approx(2 * beta)  # at most twice a time
    assert controller.update(100.0) == pytest.approx(2 * beta / 4**0.4)  # on target, and falling
    assert controller.update(100.0) == pytest.approx(2 * beta / 4**0.4)
    assert controller.update(10.0) == pytest.approx(beta / 4**0.4)
    assert RateController(beta=0.7).update(1e6) == 0.7


def test_a_pixel_needs_the_factor_at_which_its_interval_ends_at_its_residual() -> None:
    law = ResidualLaw((1, 8, 16), 0.01)
    reconstruction = torch.rand(2, 1, 8, 16)
    residual = 0.1 * torch.randn(reconstruction.shape)
    with torch.no_grad():
        needed = law.least_factors(reconstruction, residual, 0.9)
        reached = stats.norm.ppf(0.95) * (0.01 + needed * law.unscaled(reconstruction))
    torch.testing.assert_close(reached, residual.abs())


def test_a_factor_is_the_least_that_holds_its_share() -> None:
    """Of n pixels of one family the ⌈0.9·n⌉-th smallest; families weigh the same."""
    for count, place in [(10, 9), (20, 18), (99, 90), (8, 8)]:
        sizes = torch.randperm(count) + 1.0
        assert factors_of([(sizes, sizes[:0])], 0.9).tolist() == [place, place]
    many, few = torch.linspace(0, 1, 1001), torch.linspace(2, 3, 11)
    assert factors_of([(many, many[:0]), (few, few[:0])], 0.9)[0].item() == pytest.approx(2.8)


def test_the_fitted_law_s_deviation_is_floor_and_factor_times_the_network_s() -> None:
    law = ResidualLaw((1, 8, 8), 0.02)
    law.factors.copy_(torch.tensor([3.0, 9.0]))
    reconstruction = 0.5 + 0.5 * torch.rand(2, 1, 8, 8)
    found = law(reconstruction).standard_deviation(reconstruction.shape)
    torch.testing.assert_close(found, 0.02 + 3 * law.unscaled(reconstruction))
    assert law.unscaled(reconstruction).mean().item() == pytest.approx(0.05, rel=0.05)  # START


@pytest.mark.parametrize("law_of", ["gaussian", "laplace"])
def test_intervals_probabilities_and_scores_are_scipy_s(law_of: str) -> None:
    scale = torch.tensor(0.3, dtype=torch.float64)
    flat = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    law = GaussianLaw(scale, flat) if law_of == "gaussian" else LaplaceLaw(scale)
    density = (stats.norm if law_of == "gaussian" else stats.laplace)(0, 0.3)
    residual = torch.tensor([-0.7, -0.1, 0.0, 0.4], dtype=torch.float64).view(1, 1, 2, 2)
    values = residual.flatten().numpy()
    np.testing.assert_allclose(law.cdf(residual).flatten(), density.cdf(values))
    np.testing.assert_allclose(law.nll(residual), -density.logpdf(values).sum())
    np.testing.assert_allclose(law.standard_deviation(residual.shape), density.std())
    for level in (0.5, 0.9):
        half = law.half_width(level, residual.shape).flatten()[0].item()
        assert density.cdf(half) - density.cdf(-half) == pytest.approx(level)
    expected = [
        integrate.quad(lambda t: density.cdf(t) ** 2, -9, value)[0]
        + integrate.quad(lambda t: density.sf(t) ** 2, value, 9)[0]
        for value in values
    ]
    np.testing.assert_allclose(law.crps(residual).flatten(), expected, rtol=1e-6)
