"""The two alternating steps: who learns from what."""

import pytest
import torch
from tiny import TINY
from torch import Tensor, nn

from pipeline.blur.kernel_loss import kernel_loss
from pipeline.blur.spectrum import transfer_function
from pipeline.errors import InputError
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.registry import TERMS
from pipeline.models.config import ModelConfig
from pipeline.training.objective import ElboParts, Objective

MODEL = ModelConfig(**TINY["model"])
SIZE = MODEL.latent_size


def _objective(term: str = "blur", detach: bool = True, seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    likelihood = LikelihoodConfig(term=term, kernel_size=5, detach_kernel=detach)
    try:
        objective = Objective((1, 32, 32), MODEL, likelihood)
    except InputError as error:  # no weights
        pytest.skip(str(error))
    if objective.kernel_network is not None:  # a kernel that depends on z from the first step
        with torch.no_grad():
            for parameter in objective.kernel_network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return objective


def _images() -> Tensor:
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def _noise() -> Tensor:
    return torch.randn(3, SIZE, generator=torch.Generator().manual_seed(2))


def _elbo(objective: Objective, warm_up: bool = False) -> ElboParts:
    return objective.elbo(_images(), torch.Generator().manual_seed(2), warm_up=warm_up)


def _transfer(objective: Objective, latent: Tensor) -> Tensor | None:
    kernel = objective.kernel(latent)
    return None if kernel is None else transfer_function(kernel, (32, 32))


def _gradients(module: nn.Module | None) -> list[Tensor | None]:
    assert module is not None
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize("warm_up", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_one_backward_pass_gives_each_step_its_gradients(detach: bool, warm_up: bool) -> None:
    """Those of steps (A) and (B) taken one after the other, neither of which reaches the other's
    network."""
    together, apart = (_objective(detach=detach) for _ in range(2))
    loss, means = together(_images(), _noise(), beta=0.7, warm_up=warm_up)
    loss.backward()

    parts = _elbo(apart, warm_up)
    ((parts.distortion + 0.7 * parts.rate).mean() / 1024).backward()
    assert all(gradient is None for gradient in _gradients(apart.kernel_network))
    of_step_a = [gradient.clone() for gradient in _gradients(apart.vae) if gradient is not None]
    transfer = _transfer(apart, parts.latent.detach())
    assert transfer is not None
    blur = kernel_loss(_images(), parts.reconstruction.detach(), transfer).mean()
    (blur / 1024).backward()
    assert all(map(torch.equal, of_step_a, _gradients(apart.vae)))
    for one, two in zip(_gradients(together), _gradients(apart), strict=True):
        assert one is not None and two is not None and two.isfinite().all()
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    expected = {"rate": parts.rate, "elbo": parts.elbo, "kernel_loss": blur}
    for name, value in expected.items():
        assert means[name].item() == pytest.approx(value.mean().item(), rel=1e-5)
        assert not means[name].requires_grad
    torch.testing.assert_close(means["rate_side_4"] + means["rate_side_8"], means["rate"])
    torch.testing.assert_close(sum(parts.rates.values()), parts.rate)
    assert torch.equal(parts.elbo, -(parts.distortion + parts.rate))


def test_detaching_changes_the_gradient_through_the_latent_and_nothing_else() -> None:
    """Without it the distortion's pull at the kernel reaches the latent, and what that came from:
    the encoder, and the decoder above a draw."""
    one, two, alone = (_objective(detach=detach) for detach in (True, False, False))
    left, right = _elbo(one), _elbo(two)
    assert torch.equal(left.elbo, right.elbo)
    for parts in (left, right):
        (-parts.elbo).sum().backward()
    inferred = alone.vae.infer(_images(), _noise())
    transfer = _transfer(alone, inferred.latent)
    alone.term(_images(), inferred.reconstruction.detach(), transfer).value.sum().backward()
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


@pytest.mark.parametrize("term", sorted(TERMS))
def test_every_term_s_warm_up_is_that_of_the_gaussian(term: str) -> None:
    """Loss and gradients, so that all terms leave it with the same encoder and decoder."""
    one, gaussian = _objective(term), _objective("gaussian")
    assert all(map(torch.equal, one.vae.parameters(), gaussian.vae.parameters()))
    for objective in (one, gaussian):
        objective(_images(), _noise(), beta=0.7, warm_up=True)[0].backward()
    assert all(map(torch.equal, _gradients(one.vae), _gradients(gaussian.vae)))  # type: ignore[arg-type]
    # Processes that share a batch wait for a gradient of every parameter.
    assert all(p.grad is not None and not p.grad.any() for p in one.term.parameters())
    after, plain = (_elbo(objective).distortion for objective in (one, gaussian))
    assert torch.equal(after, plain) == (term == "gaussian")


@pytest.mark.parametrize("term", ["blur", "gaussian", "laplace", "robust", "watson_dft"])
def test_the_ratio_of_the_pulls_at_the_latent_leaves_no_trace(term: str) -> None:
    objective = _objective(term).train()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    ratio = objective.pull_ratio(_images(), _noise())
    for name, value in objective.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0))
    assert all(parameter.grad is None for parameter in objective.parameters())

    latent = objective.vae.infer(_images(), _noise()).latent.detach().requires_grad_()
    transfer = _transfer(objective, latent.detach())
    gaussian = _objective("gaussian").train().term
    pulls = []
    for judge, given in ((gaussian, None), (objective.term, transfer)):
        value = judge(_images(), objective.vae.decode(latent), given).value.sum()
        pulls.append(torch.autograd.grad(value, latent)[0].norm().item())
    assert ratio == pytest.approx(pulls[1] / pulls[0], rel=1e-4)
    assert (term != "gaussian") == (abs(ratio - 1) > 1e-3)


def test_a_gaussian_objective_has_no_kernel_and_the_mean_latent_draws_nothing() -> None:
    objective = _objective("gaussian")
    assert objective.kernel(_elbo(objective).latent) is None
    _, means = objective(_images(), _noise(), beta=1.0, warm_up=False)
    assert set(means) == {"elbo", "distortion", "rate", "scale", "rate_side_4", "rate_side_8"}
    one, two = (objective.elbo(_images(), mean_latent=True) for _ in range(2))
    assert torch.equal(one.elbo, two.elbo)
    assert torch.equal(one.latent, objective.vae.encode(_images()).mean)
    with pytest.raises(ValueError, match=r"likelihood\.kernel_size 33"):
        Objective((1, 32, 32), MODEL, LikelihoodConfig(kernel_size=33))
    Objective((1, 32, 32), MODEL, LikelihoodConfig(term="gaussian", kernel_size=33))


def test_step_b_recovers_a_known_kernel() -> None:
    """Reconstructions blurred by a lopsided kernel: only the true one explains them."""
    network = _objective().kernel_network
    assert network is not None
    truth = torch.tensor(
        [[0, 0, 0, 0, 0], [0, 1, 2, 1, 0], [0, 2, 6, 4, 1], [0, 1, 3, 3, 1], [0, 0, 0, 1, 2]]
    ).float()[None, None]
    truth /= truth.sum()
    images = torch.rand(16, 1, 32, 32)  # power at every frequency
    spectrum = torch.fft.rfft2(images) * transfer_function(truth, (32, 32))
    blurred = torch.fft.irfft2(spectrum, s=(32, 32))
    latent = torch.ones(16, SIZE)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(500):
        loss = kernel_loss(images, blurred, transfer_function(network(latent), (32, 32)))
        optimizer.zero_grad()
        (loss.mean() / 1024).backward()
        optimizer.step()
    kernel = network(latent[:1]).detach()
    assert (kernel - truth).abs().max() < 0.01
    assert (kernel - truth.flip((-2, -1))).abs().max() > 0.05
