"""The two alternating steps: who learns from what."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.blur.kernel_loss import kernel_loss
from pipeline.blur.spectrum import transfer_function
from pipeline.errors import InputError
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.registry import TERMS
from pipeline.models.config import Level, ModelConfig
from pipeline.training.objective import ElboParts, Objective

MODEL = ModelConfig(
    levels=[Level(4, 2), Level(8, 1)], width=4, max_width=8, residual_blocks=0, kernel_hidden=8
)
SIZE = MODEL.latent_size


def _objective(term: str = "blur", detach: bool = True, seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    likelihood = LikelihoodConfig(term=term, kernel_size=5, detach_kernel=detach)
    objective = Objective((1, 32, 32), MODEL, likelihood)
    if objective.kernel_network is not None:  # a kernel that depends on z from the first step
        with torch.no_grad():
            for parameter in objective.kernel_network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return objective


def _images() -> Tensor:
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def _elbo(objective: Objective, warm_up: bool = False) -> ElboParts:
    return objective.elbo(_images(), torch.Generator().manual_seed(2), warm_up=warm_up)


def _kernel_loss(objective: Objective, parts: ElboParts) -> Tensor:
    """Step (B) by its definition."""
    kernel = objective.kernel(parts.latent.detach())
    assert kernel is not None
    transfer = transfer_function(kernel, (32, 32))
    return kernel_loss(_images(), parts.reconstruction.detach(), transfer)


def _gradients(module: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize("warm_up", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_step_a_leaves_the_kernel_network_without_gradient(detach: bool, warm_up: bool) -> None:
    objective = _objective(detach=detach)
    assert objective.kernel_network is not None
    (-_elbo(objective, warm_up).elbo).sum().backward()
    assert all(gradient is None for gradient in _gradients(objective.kernel_network))
    for gradient in _gradients(objective.vae):
        assert gradient is not None and gradient.isfinite().all()


@pytest.mark.parametrize("detach", [True, False])
def test_step_b_leaves_encoder_and_decoder_without_gradient(detach: bool) -> None:
    objective = _objective(detach=detach)
    assert objective.kernel_network is not None
    parts = _elbo(objective)
    loss = _kernel_loss(objective, parts)
    assert loss.shape == (3,)
    loss.sum().backward()
    assert all(gradient is None for gradient in _gradients(objective.vae))
    for gradient in _gradients(objective.kernel_network):
        assert gradient is not None and gradient.abs().sum() > 0


@pytest.mark.parametrize("warm_up", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_one_backward_pass_gives_each_step_its_gradients(detach: bool, warm_up: bool) -> None:
    """Those of steps (A) and (B) taken one after the other, each on its own parameters."""
    noise = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(2))
    together, apart = (_objective(detach=detach) for _ in range(2))
    loss, means = together(_images(), noise, beta=0.7, warm_up=warm_up)
    loss.backward()

    parts = apart.elbo(_images(), torch.Generator().manual_seed(2), warm_up=warm_up)
    ((parts.distortion + 0.7 * parts.rate).mean() / 1024).backward()
    kernel_loss = _kernel_loss(apart, parts).mean()
    (kernel_loss / 1024).backward()
    for one, two in zip(_gradients(together), _gradients(apart), strict=True):
        assert one is not None and two is not None
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    expected = {"rate": parts.rate.mean(), "elbo": parts.elbo.mean(), "kernel_loss": kernel_loss}
    for name, value in expected.items():
        assert means[name].item() == pytest.approx(value.item(), rel=1e-5)
        assert not means[name].requires_grad


def test_detaching_changes_the_gradient_through_the_latent_and_nothing_else() -> None:
    """Without it the distortion's pull at the kernel reaches the latent, and what that came from:
    the encoder, and the decoder above a draw."""
    one, two, alone = (_objective(detach=detach) for detach in (True, False, False))
    left, right = _elbo(one), _elbo(two)
    assert torch.equal(left.elbo, right.elbo)
    for parts in (left, right):
        (-parts.elbo).sum().backward()

    noise = one.vae.prior_latents(3, torch.Generator().manual_seed(2))
    found = alone.vae.infer(_images(), noise)
    kernel = alone.kernel(found.latent)
    assert kernel is not None
    transfer = transfer_function(kernel, (32, 32))
    alone.term(_images(), found.reconstruction.detach(), transfer).value.sum().backward()
    pulls = []
    for name, parameter in two.vae.named_parameters():
        without, pull = one.vae.get_parameter(name).grad, alone.vae.get_parameter(name).grad
        assert parameter.grad is not None and without is not None
        expected = without if pull is None else without + pull
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-3)
        if name.startswith("encoder."):
            assert pull is not None
            pulls.append((pull.norm() / without.norm()).item())
        if name.startswith("decoder.exit."):  # below the last draw
            assert pull is None
    assert max(pulls) > 1e-3


def test_the_warm_up_is_the_gaussian_term() -> None:
    blur, gaussian = _elbo(_objective(), warm_up=True), _elbo(_objective("gaussian"))
    assert torch.equal(blur.elbo, gaussian.elbo)
    assert not torch.equal(blur.elbo, _elbo(_objective()).elbo)


@pytest.mark.parametrize("term", sorted(TERMS))
def test_every_term_s_warm_up_is_that_of_the_gaussian(term: str) -> None:
    """Loss and gradients, so that all terms leave it with the same encoder and decoder."""
    try:
        one, gaussian = _objective(term), _objective("gaussian")
    except InputError as error:  # no weights
        pytest.skip(str(error))
    noise = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(2))
    for objective in (one, gaussian):
        objective(_images(), noise, beta=0.7, warm_up=True)[0].backward()
    for left, right in zip(one.vae.parameters(), gaussian.vae.parameters(), strict=True):
        assert left.grad is not None and right.grad is not None
        assert torch.equal(left.grad, right.grad)
    # Processes that share a batch wait for a gradient of every parameter.
    assert all(p.grad is not None and not p.grad.any() for p in one.term.parameters())


@pytest.mark.parametrize("term", sorted({*TERMS} - {"vgg"}))
def test_the_ratio_of_the_pulls_at_the_latent_leaves_no_trace(term: str) -> None:
    objective = _objective(term).train()
    noise = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(2))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    found = objective.pull_ratio(_images(), noise)
    for name, value in objective.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0))
    assert all(parameter.grad is None for parameter in objective.parameters())

    latent = objective.vae.infer(_images(), noise).latent.detach().requires_grad_()
    kernel = objective.kernel(latent.detach())
    transfer = None if kernel is None else transfer_function(kernel, (32, 32))
    gaussian = _objective("gaussian").train().term
    pulls = []
    for judge, given in ((gaussian, None), (objective.term, transfer)):
        value = judge(_images(), objective.vae.decode(latent), given).value.sum()
        pulls.append(torch.autograd.grad(value, latent)[0].norm().item())
    assert found == pytest.approx(pulls[1] / pulls[0], rel=1e-4)
    assert (term != "gaussian") == (abs(found - 1) > 1e-3)


def test_terms_start_from_the_same_encoder_and_decoder() -> None:
    blur, gaussian = _objective(seed=7), _objective("gaussian", seed=7)
    for a, b in zip(blur.vae.parameters(), gaussian.vae.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_elbo_is_minus_distortion_minus_rate() -> None:
    parts = _elbo(_objective())
    assert torch.equal(parts.elbo, -(parts.distortion + parts.rate))
    assert parts.elbo.shape == parts.rate.shape == (3,)


def test_a_gaussian_objective_has_no_kernel() -> None:
    objective = _objective("gaussian")
    assert objective.kernel(_elbo(objective).latent) is None
    _, means = objective(_images(), torch.zeros(3, SIZE), beta=1.0, warm_up=False)
    assert set(means) == {"elbo", "distortion", "rate", "scale", "rate_side_4", "rate_side_8"}


@pytest.mark.parametrize("warm_up", [True, False])
def test_the_rate_of_each_level_is_told_and_their_sum_is_the_rate(warm_up: bool) -> None:
    objective = _objective()
    parts = _elbo(objective)
    assert list(parts.rates) == [4, 8]
    assert all(rate.shape == (3,) and (rate > 0).all() for rate in parts.rates.values())
    torch.testing.assert_close(sum(parts.rates.values()), parts.rate)
    _, means = objective(_images(), torch.randn(3, SIZE), beta=0.3, warm_up=warm_up)
    levels = means["rate_side_4"] + means["rate_side_8"]
    torch.testing.assert_close(levels, means["rate"])


def test_the_mean_latent_draws_nothing() -> None:
    objective = _objective()
    one, two = (objective.elbo(_images(), mean_latent=True) for _ in range(2))
    assert torch.equal(one.elbo, two.elbo)
    assert torch.equal(one.latent, objective.vae.encode(_images()).mean)


def test_a_kernel_larger_than_the_image_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"likelihood\.kernel_size 33"):
        Objective((1, 32, 32), MODEL, LikelihoodConfig(kernel_size=33))
    Objective((1, 32, 32), MODEL, LikelihoodConfig(term="gaussian", kernel_size=33))


def _scenes(count: int, generator: torch.Generator) -> Tensor:
    """Overlapping rectangles: edges in every place, power at every frequency."""
    images = torch.zeros(count, 1, 32, 32)
    for image in images:
        for _ in range(12):
            top, left = torch.randint(0, 28, (2,), generator=generator).tolist()
            tall, wide = torch.randint(2, 12, (2,), generator=generator).tolist()
            value = torch.rand((), generator=generator)
            image[0, top : top + tall, left : left + wide] = value
    return images


def test_step_b_recovers_a_known_kernel() -> None:
    """Reconstructions blurred by a lopsided kernel: only the true one explains them."""
    objective = _objective()
    network = objective.kernel_network
    assert network is not None
    truth = torch.tensor(
        [[0, 0, 0, 0, 0], [0, 1, 2, 1, 0], [0, 2, 6, 4, 1], [0, 1, 3, 3, 1], [0, 0, 0, 1, 2]]
    ).float()[None, None]
    truth /= truth.sum()
    images = _scenes(64, torch.Generator().manual_seed(0))
    spectrum = torch.fft.rfft2(images) * transfer_function(truth, (32, 32))
    reconstruction = torch.fft.irfft2(spectrum, s=(32, 32))
    latent = torch.ones(16, SIZE)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    batches = list(zip(images.split(16), reconstruction.split(16), strict=True))
    for step in range(500):
        batch, blurred = batches[step % len(batches)]
        loss = kernel_loss(batch, blurred, transfer_function(network(latent), (32, 32)))
        optimizer.zero_grad()
        (loss.mean() / 1024).backward()
        optimizer.step()
    found = network(latent[:1]).detach()
    assert (found - truth).abs().max() < 0.01
    assert (found - truth.flip((-2, -1))).abs().max() > 0.05
