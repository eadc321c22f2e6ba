"""The VAE fits every size, its latents are standard normal from coarse to fine, and its rate is the
divergence of the joint posterior from the joint prior."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from pipeline.models.config import Level, ModelConfig, describe_levels
from pipeline.models.vae import VAE, Inference, Posterior

VECTOR = [Level(1, 5)]
TWO = [Level(4, 2), Level(8, 1)]
LISTS = {
    "vector": VECTOR,
    "grid": [Level(8, 3)],
    "groups": [Level(4, 4), Level(8, 2), Level(16, 1, groups=2)],
    "4 levels": [Level(1, 4), Level(4, 2), Level(8, 1), Level(16, 1)],
}
STAIRS = [Level(4, 2), Level(8, 1, groups=2, opens=0.25), Level(16, 1, opens=0.5)]

every_list = pytest.mark.parametrize("levels", LISTS.values(), ids=LISTS)


def _config(levels: Sequence[Level], blocks: int = 1) -> ModelConfig:
    return ModelConfig(levels=list(levels), width=4, max_width=8, residual_blocks=blocks)


def _vae(levels: Sequence[Level], side: int = 32, channels: int = 1, blocks: int = 1) -> VAE:
    return VAE((channels, side, side), _config(levels, blocks))


def _lively(levels: Sequence[Level]) -> VAE:
    """Weights as after a training: no layer is small or the identity, as at first."""
    vae = _vae(levels)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vae


def _infer(vae: VAE, images: Tensor, seed: int = 0) -> Inference:
    noise = vae.prior_latents(len(images), torch.Generator().manual_seed(seed))
    return vae.infer(images, noise)


# ------------------------------------------------------------------ sizes


@every_list
@pytest.mark.parametrize(
    ("side", "channels", "blocks"), [(32, 1, 0), (32, 3, 2), (64, 3, 1), (128, 1, 1), (256, 1, 1)]
)
def test_every_side_and_every_levels_give_images(
    side: int, channels: int, blocks: int, levels: list[Level]
) -> None:
    vae = _vae(levels, side, channels, blocks)
    size = sum(level.groups * level.channels * level.side**2 for level in levels)
    assert vae.latent_size == size
    images = torch.rand(2, channels, side, side)
    inferred = _infer(vae, images)
    for values in (inferred.posterior.mean, inferred.posterior.log_variance, inferred.latent):
        assert values.shape == (2, size)
    for picture in (inferred.reconstruction, vae.decode(10 * vae.prior_latents(2))):
        assert picture.shape == images.shape
        assert picture.min() >= 0 and picture.max() <= 1
    # No draw starts as noise, which the decoder would shut out for good: its deviation is .22.
    assert inferred.posterior.mean.square().mean().sqrt() < 0.5
    deviation = (0.5 * inferred.posterior.log_variance).exp()
    assert deviation.mean().item() == pytest.approx(0.22, abs=0.05)
    finest = _vae([Level(4, 1), Level(side // 2, 1)], side, channels)
    assert finest.infer(images).reconstruction.shape == images.shape


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 48, 48), "side must be one of"), ((1, 16, 16), "side must be one of"),
     ((1, 32, 64), "square with 1 or 3 channels"), ((2, 32, 32), "square with 1 or 3 channels")],
    ids=str,
)  # fmt: skip
def test_other_images_are_refused(shape: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VAE(shape, _config(VECTOR))


# ------------------------------------------------------------------ one way down


@every_list
def test_the_latent_is_the_posterior_s_at_the_noise_and_decodes_to_the_reconstruction(
    levels: list[Level],
) -> None:
    vae, images = _lively(levels), torch.rand(3, 1, 32, 32)
    noise = vae.prior_latents(3)
    drawn, middle = vae.infer(images, noise), vae.infer(images)
    torch.testing.assert_close(drawn.latent, drawn.posterior.at(noise), rtol=0, atol=1e-6)
    assert torch.equal(middle.latent, middle.posterior.mean)
    assert torch.equal(vae.encode(images).mean, middle.latent)
    silent = vae.infer(images, torch.zeros_like(noise))
    for one, picture in ((drawn, drawn), (middle, middle), (middle, silent)):
        decoded = vae.decode(one.latent)
        torch.testing.assert_close(decoded, picture.reconstruction, rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", [TWO, [Level(4, 2, groups=2)]], ids=describe_levels)
def test_a_posterior_is_given_the_draws_before_it_and_none_after(levels: list[Level]) -> None:
    """The first draw has 2·4·4 numbers."""
    vae, images = _lively(levels), torch.rand(2, 1, 32, 32)
    noise = vae.prior_latents(2)
    for moved, part in ((True, slice(0, 32)), (False, slice(32, None))):
        other = noise.clone()
        other[:, part] += 1.0
        one, two = (vae.infer(images, value).posterior.mean for value in (noise, other))
        assert torch.equal(one[:, :32], two[:, :32])
        assert torch.equal(one[:, 32:], two[:, 32:]) != moved


@every_list
def test_every_weight_gets_a_gradient_when_all_levels_are_open(levels: list[Level]) -> None:
    vae, images = _lively(levels), torch.rand(4, 1, 32, 32)
    inferred = _infer(vae, images)
    loss = (inferred.reconstruction - images).square().sum() + inferred.posterior.rate().sum()
    loss.backward()
    for name, parameter in vae.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all() and gradient.any(), name


# ------------------------------------------------------------------ the rate


@every_list
def test_the_rate_is_the_sum_of_the_rates_by_side(levels: list[Level]) -> None:
    vae, images = _lively(levels), torch.rand(3, 1, 32, 32)
    posterior = _infer(vae, images).posterior
    rates = vae.rates(posterior)
    assert list(rates) == [level.side for level in levels]
    torch.testing.assert_close(sum(rates.values()), posterior.rate(), rtol=1e-5, atol=1e-5)
    begin = 0
    for level in levels:  # each from the numbers of its own part
        end = begin + level.groups * level.channels * level.side**2
        part = Posterior(posterior.mean[:, begin:end], posterior.log_variance[:, begin:end])
        torch.testing.assert_close(rates[level.side], part.rate(), rtol=1e-5, atol=1e-5)
        begin = end


def _log_posterior(vae: VAE, image: Tensor, latent: Tensor) -> Tensor:
    """log q(z|x) in nats, (B,): the sum over draws, each given those of `latent` before it."""
    parts, features = vae.decoder.split(latent), vae.encoder(image)
    logs: list[Tensor] = []

    def choose(number: int, state: Tensor) -> Tensor:
        mean, log_variance = vae.encoder.posterior(number, state, features)
        law = Normal(mean, (0.5 * log_variance).exp())
        logs.append(law.log_prob(parts[number]).flatten(1).sum(dim=1))
        return parts[number]

    vae.decoder.top_down(len(image), choose)
    return torch.stack(logs).sum(dim=0)


@pytest.mark.parametrize("levels", [VECTOR, [Level(4, 1, groups=2)]], ids=describe_levels)
def test_the_mean_rate_is_the_divergence_of_the_joint_posterior(levels: list[Level]) -> None:
    """E_q[log q(z|x) − log p(z)] by 512 draws of one image, log p that of N(0,I).

    With several draws q is no Gaussian, and the rate is another on every way down.
    """
    vae = _lively(levels).double().requires_grad_(False)
    image = torch.rand(1, 1, 32, 32).double().expand(512, -1, -1, -1)
    inferred = _infer(vae, image)
    log_q = _log_posterior(vae, image, inferred.latent)
    log_p = -0.5 * (inferred.latent.square() + math.log(2 * math.pi)).sum(dim=1)
    ratio, rate = log_q - log_p, inferred.posterior.rate()
    error = ((ratio - rate).std() / math.sqrt(len(ratio))).item()
    assert error < 0.05 * rate.mean()
    assert abs(ratio.mean() - rate.mean()) < 4 * error
    assert (rate.std() > 1e-4 * rate.mean()) == (len(vae.decoder.draws) > 1)


def test_draws_follow_the_posterior_and_their_generator() -> None:
    mean, log_variance = torch.full((20000, 1), 3.0), torch.full((20000, 1), -2.0)
    one, two = (
        Posterior(mean, log_variance).sample(torch.Generator().manual_seed(0)) for _ in range(2)
    )
    assert torch.equal(one, two)
    assert one.mean().item() == pytest.approx(3.0, abs=0.01)
    assert one.var().item() == pytest.approx(math.exp(-2.0), rel=0.03)


# ------------------------------------------------------------------ closed levels


def test_a_level_opens_at_its_share_of_the_run_and_not_before() -> None:
    """What is open is part of the weights; a model that is not in training is whole."""
    decoder, other = _vae(STAIRS).decoder, _vae(STAIRS).decoder
    assert decoder.opened.tolist() == [1, 1, 1]
    steps = ((0.0, 1), (0.2499, 1), (0.25, 2), (0.4999, 2), (0.5, 3), (1.0, 3), (0.0, 1))
    for progress, count in steps:
        assert decoder.open(progress) == count
        assert decoder.opened.tolist() == [1] * count + [0] * (3 - count)
    other.load_state_dict(decoder.state_dict())
    assert other.opened.tolist() == [1, 0, 0]


@pytest.mark.parametrize(("progress", "size"), [(0.0, 32), (0.3, 160)])
def test_a_closed_level_is_the_prior_costs_nothing_and_is_not_decoded(
    progress: float, size: int
) -> None:
    vae, images = _lively(STAIRS), torch.rand(3, 1, 32, 32)
    whole = vae.prior_latents(3)
    decoded = vae.decode(whole)
    vae.decoder.open(progress)
    inferred = _infer(vae, images)
    for values in (inferred.posterior.mean, inferred.posterior.log_variance, inferred.latent):
        assert (values[:, :size] != 0).all() and (values[:, size:] == 0).all()
    assert (inferred.posterior.divergence()[:, size:] == 0).all()
    other = whole.clone()
    other[:, size:] = 7 * torch.randn_like(other[:, size:])
    assert torch.equal(vae.decode(whole), vae.decode(other))
    vae.decoder.open(1.0)
    assert torch.equal(vae.decode(whole), decoded)
    assert not torch.equal(decoded, vae.decode(other))


def test_a_closed_level_leaves_no_weight_without_a_gradient_and_none_astray() -> None:
    """Processes that share a batch wait for a gradient of every weight, be it 0."""
    vae, images = _lively(STAIRS), torch.rand(2, 1, 32, 32)
    vae.decoder.open(0.0)
    inferred = _infer(vae, images)
    ((inferred.reconstruction - images).square().sum() + inferred.posterior.rate().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    for number in (1, 2, 3):  # the closed draws
        assert not any(p.grad.any() for p in vae.encoder.heads[number].parameters())
        assert not vae.decoder.draws[number].entry.weight.grad.any()


# ------------------------------------------------------------------ the place of a latent's number


def test_the_parts_of_a_latent_go_from_coarse_to_fine_and_draw_by_draw() -> None:
    levels = [Level(4, 3, groups=2), Level(8, 1), Level(16, 2)]
    parts = _vae(levels).decoder.split(torch.arange(96 + 64 + 512.0)[None])
    shapes = [(1, 3, 4, 4), (1, 3, 4, 4), (1, 1, 8, 8), (1, 2, 16, 16)]
    assert [part.shape for part in parts] == shapes
    assert [int(part.flatten()[0]) for part in parts] == [0, 48, 96, 160]
    assert parts[0][0, 1, 0, 0] == 16  # channels,
    assert parts[0][0, 0, 1, 0] == 4  # rows,
    assert parts[0][0, 0, 0, 1] == 1  # columns


@pytest.mark.parametrize(
    ("index", "row", "column", "pixels"),
    [(0, 0, 0, 8), (3, 0, 3, 8), (12, 3, 0, 8), (16 + 9, 2, 1, 8), (16 + 6, 1, 2, 8),
     (32 + 7, 0, 7, 4), (32 + 56, 7, 0, 4), (32 + 42, 5, 2, 4)],
)  # fmt: skip
def test_a_number_of_a_latent_changes_its_place_in_the_image(
    index: int, row: int, column: int, pixels: int
) -> None:
    """Level of side 4: at 16·channel + 4·row + column, cells of 8×8 pixels; the next, of side 8, at
    32 + 8·row + column, cells of 4×4. In a network in which no pixel sees its neighbours."""
    vae = _vae(TWO, blocks=0)
    with torch.no_grad():
        for module in vae.decoder.modules():
            if isinstance(module, nn.Sequential):  # norms see the whole image
                for number, layer in enumerate(module):
                    if isinstance(layer, nn.GroupNorm):
                        module[number] = nn.Identity()
        for module in vae.decoder.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                middle = module.weight[..., 1, 1].clone()
                module.weight.zero_()
                module.weight[..., 1, 1] = middle
        latent = vae.prior_latents(1)
        other = latent.clone()
        other[0, index] += 3.0
        change = (vae.decode(other) - vae.decode(latent)).abs()[0, 0]
    rows, columns = (slice(pixels * k, pixels * k + pixels) for k in (row, column))
    assert change[rows, columns].any()
    change[rows, columns] = 0
    assert not change.any()
