"""The VAE fits every size, and says which key is wrong where it cannot."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from pipeline.models.config import ModelConfig
from pipeline.models.vae import VAE, Posterior


def _config(latent: list[int], width: int = 4, blocks: int = 1) -> ModelConfig:
    return ModelConfig(latent=latent, width=width, max_width=8, residual_blocks=blocks)


@pytest.mark.parametrize("latent", [[5], [3, 4, 4], [2, 16, 16]], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 64, 128, 256])
def test_every_side_and_latent_gives_images(side: int, channels: int, latent: list[int]) -> None:
    vae = VAE((channels, side, side), _config(latent))
    images = torch.rand(2, channels, side, side)
    posterior = vae.encode(images)
    assert posterior.mean.shape == posterior.log_variance.shape == (2, *latent)
    assert posterior.sample().shape == (2, *latent)
    reconstruction = vae.decode(10 * vae.prior_latents(2))
    assert reconstruction.shape == images.shape
    assert reconstruction.min() >= 0 and reconstruction.max() <= 1


@pytest.mark.parametrize("blocks", [0, 2])
def test_the_number_of_residual_blocks_is_free(blocks: int) -> None:
    vae = VAE((1, 32, 32), _config([4, 4, 4], blocks=blocks))
    assert vae.decode(vae.encode(torch.rand(1, 1, 32, 32)).mean).shape == (1, 1, 32, 32)


def test_the_memory_format_changes_nothing() -> None:
    vae = VAE((3, 32, 32), _config([4, 4, 4]))
    images = torch.rand(2, 3, 32, 32)
    plain = vae.decode(vae.encode(images).mean)
    vae = vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    other = vae.decode(vae.encode(images.contiguous(memory_format=torch.channels_last)).mean)
    torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-6)


def test_every_weight_gets_a_gradient() -> None:
    vae = VAE((1, 32, 32), _config([4, 4, 4]))
    images = torch.rand(4, 1, 32, 32)
    posterior = vae.encode(images)
    loss = (vae.decode(posterior.sample()) - images).square().sum() + posterior.rate().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


@given(
    mean=st.lists(st.floats(-30, 30), min_size=12, max_size=12),
    log_variance=st.lists(st.floats(-12, 6), min_size=12, max_size=12),
)
def test_the_rate_is_the_divergence_from_the_prior(
    mean: list[float], log_variance: list[float]
) -> None:
    shape = (2, 3, 2, 1)
    means = torch.tensor(mean, dtype=torch.float64).reshape(shape)
    logs = torch.tensor(log_variance, dtype=torch.float64).reshape(shape)
    prior = Normal(torch.zeros_like(means), torch.ones_like(means))
    expected = kl_divergence(Normal(means, (logs / 2).exp()), prior).flatten(1).sum(dim=1)
    torch.testing.assert_close(Posterior(means, logs).rate(), expected, rtol=1e-9, atol=1e-9)


def test_the_prior_costs_nothing() -> None:
    assert Posterior(torch.zeros(3, 7), torch.zeros(3, 7)).rate().tolist() == [0, 0, 0]


def test_draws_follow_the_posterior() -> None:
    mean, log_variance = torch.full((20000, 1), 3.0), torch.full((20000, 1), -2.0)
    drawn = Posterior(mean, log_variance).sample(torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.01)
    assert drawn.var().item() == pytest.approx(torch.tensor(-2.0).exp().item(), rel=0.03)


def test_the_same_generator_draws_the_same() -> None:
    vae = VAE((1, 32, 32), _config([5]))
    posterior = vae.encode(torch.rand(2, 1, 32, 32))
    one, two = (posterior.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    one, two = (vae.prior_latents(4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (4, 5)


@pytest.mark.parametrize("shape", [(1, 48, 48), (1, 16, 16), (1, 512, 512)], ids=str)
def test_another_side_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="side must be one of"):
        VAE(shape, _config([5]))


@pytest.mark.parametrize("shape", [(1, 32, 64), (2, 32, 32), (4, 64, 64)], ids=str)
def test_other_channels_and_oblong_images_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="square with 1 or 3 channels"):
        VAE(shape, _config([5]))


@pytest.mark.parametrize(
    "latent", [[], [0], [-1, 4, 4], [3, 4], [3, 4, 8], [3, 2, 2], [3, 6, 6], [1, 2, 3, 4]], ids=str
)
def test_a_latent_that_cannot_be_is_refused_by_name(latent: list[int]) -> None:
    with pytest.raises(ValueError, match=r"model\.latent"):
        ModelConfig(latent=latent)


def test_a_latent_as_large_as_the_image_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model\.latent"):
        VAE((1, 32, 32), _config([3, 32, 32]))


@pytest.mark.parametrize(
    ("key", "value"),
    [("width", 0), ("width", 6), ("max_width", 0), ("residual_blocks", -1), ("kernel_hidden", 0)],
)
def test_a_size_that_cannot_be_is_refused_by_name(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"model\.{key}"):
        ModelConfig(**{key: value})  # type: ignore[arg-type]
