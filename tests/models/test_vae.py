"""The VAE fits every size, its latents are standard normal from coarse to fine, and its rate is the
divergence of the joint posterior from the joint prior."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from pipeline.models.config import Level, ModelConfig, describe_levels
from pipeline.models.vae import VAE, Inference, Posterior

VECTOR = [Level(1, 5)]
GRID = [Level(8, 3)]
TWO = [Level(4, 2), Level(8, 1)]
FOUR = [Level(4, 4), Level(8, 2), Level(16, 1, groups=2)]
FROM_A_VECTOR = [Level(1, 4), Level(4, 2), Level(8, 1), Level(16, 1)]
LISTS = {"vector": VECTOR, "grid": GRID, "groups": FOUR, "4 levels": FROM_A_VECTOR}


def _config(levels: Sequence[Level], blocks: int = 1) -> ModelConfig:
    return ModelConfig(levels=list(levels), width=4, max_width=8, residual_blocks=blocks)


def _vae(levels: Sequence[Level], side: int = 32, channels: int = 1, blocks: int = 1) -> VAE:
    return VAE((channels, side, side), _config(levels, blocks))


def _lively(vae: VAE) -> VAE:
    """Weights as after a training: no layer is small or the identity, as at first."""
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vae


def _infer(vae: VAE, images: Tensor, seed: int = 0) -> Inference:
    noise = vae.prior_latents(len(images), torch.Generator().manual_seed(seed))
    return vae.infer(images, noise)


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize("levels", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 64, 128, 256])
def test_every_side_and_every_levels_give_images(
    side: int, channels: int, levels: list[Level]
) -> None:
    vae = _vae(levels, side, channels)
    size = sum(level.groups * level.channels * level.side**2 for level in levels)
    assert vae.latent_size == size
    images = torch.rand(2, channels, side, side)
    found = _infer(vae, images)
    for values in (found.posterior.mean, found.posterior.log_variance, found.latent):
        assert values.shape == (2, size)
    assert vae.encode(images).mean.shape == (2, size)
    drawn = vae.decode(10 * vae.prior_latents(2))
    for picture in (found.reconstruction, drawn):
        assert picture.shape == images.shape
        assert picture.min() >= 0 and picture.max() <= 1


@pytest.mark.parametrize("side", [32, 64, 128, 256])
def test_the_finest_level_may_have_half_the_image_s_side(side: int) -> None:
    vae = _vae([Level(4, 1), Level(side // 2, 1)], side)
    assert _infer(vae, torch.rand(1, 1, side, side)).reconstruction.shape == (1, 1, side, side)


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("levels", LISTS.values(), ids=LISTS)
def test_the_number_of_residual_blocks_is_free(levels: list[Level], blocks: int) -> None:
    vae = _vae(levels, blocks=blocks)
    assert vae.infer(torch.rand(1, 1, 32, 32)).reconstruction.shape == (1, 1, 32, 32)


def test_the_memory_format_changes_nothing() -> None:
    vae = _lively(_vae(TWO, channels=3))
    images = torch.rand(2, 3, 32, 32)
    plain = vae.infer(images)
    vae = vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    other = vae.infer(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(other.reconstruction, plain.reconstruction, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other.latent, plain.latent, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ one way down


@pytest.mark.parametrize("levels", LISTS.values(), ids=LISTS)
def test_the_latent_of_an_inference_decodes_to_its_reconstruction(levels: list[Level]) -> None:
    vae, images = _lively(_vae(levels)), torch.rand(3, 1, 32, 32)
    for found in (vae.infer(images), _infer(vae, images)):
        torch.testing.assert_close(
            vae.decode(found.latent), found.reconstruction, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("levels", LISTS.values(), ids=LISTS)
def test_the_latent_is_the_posterior_s_at_the_noise(levels: list[Level]) -> None:
    vae, images = _lively(_vae(levels)), torch.rand(3, 1, 32, 32)
    noise = vae.prior_latents(3)
    found = vae.infer(images, noise)
    torch.testing.assert_close(found.latent, found.posterior.at(noise), rtol=0, atol=1e-6)
    assert not torch.equal(found.latent, noise)


@pytest.mark.parametrize("levels", LISTS.values(), ids=LISTS)
def test_without_noise_every_draw_is_its_posterior_s_mean(levels: list[Level]) -> None:
    vae, images = _lively(_vae(levels)), torch.rand(3, 1, 32, 32)
    found, silent = vae.infer(images), vae.infer(images, torch.zeros(3, vae.latent_size))
    assert torch.equal(found.latent, found.posterior.mean)
    assert torch.equal(vae.encode(images).mean, found.posterior.mean)
    assert torch.equal(vae.encode(images).log_variance, found.posterior.log_variance)
    torch.testing.assert_close(silent.reconstruction, found.reconstruction, rtol=0, atol=1e-6)


def test_a_posterior_is_given_the_draws_before_it_and_none_after() -> None:
    vae, images = _lively(_vae(TWO)), torch.rand(2, 1, 32, 32)
    noise = vae.prior_latents(2)
    coarse = 2 * 4 * 4
    for first, last, moved in ((0, coarse, True), (coarse, vae.latent_size, False)):
        other = noise.clone()
        other[:, first:last] += 1.0
        one, two = (vae.infer(images, value).posterior for value in (noise, other))
        assert torch.equal(one.mean[:, :coarse], two.mean[:, :coarse])
        assert torch.equal(one.mean[:, coarse:], two.mean[:, coarse:]) != moved


def test_groups_of_a_side_are_drawn_one_after_the_other() -> None:
    vae, images = _lively(_vae([Level(4, 2, groups=2)])), torch.rand(2, 1, 32, 32)
    noise = vae.prior_latents(2)
    other = noise.clone()
    other[:, :32] += 1.0  # 2·4·4 of the first draw
    one, two = (vae.infer(images, value).posterior.mean for value in (noise, other))
    assert torch.equal(one[:, :32], two[:, :32]) and not torch.equal(one[:, 32:], two[:, 32:])


def test_every_weight_gets_a_gradient_when_all_levels_are_open() -> None:
    for levels in LISTS.values():
        vae, images = _lively(_vae(levels)), torch.rand(4, 1, 32, 32)
        found = _infer(vae, images)
        loss = (found.reconstruction - images).square().sum() + found.posterior.rate().sum()
        loss.backward()
        for name, parameter in vae.named_parameters():
            gradient = parameter.grad
            assert gradient is not None and gradient.isfinite().all(), name
            assert gradient.abs().sum() > 0, name


def test_at_first_the_posterior_is_narrow_and_its_mean_near_the_priors() -> None:
    """No draw starts as noise, which the decoder would shut out for good: its deviation is .22."""
    for levels in LISTS.values():
        found = _infer(_vae(levels), torch.rand(4, 1, 32, 32)).posterior
        assert found.mean.square().mean().sqrt() < 0.5
        deviation = (0.5 * found.log_variance).exp()
        assert deviation.mean().item() == pytest.approx(0.22, abs=0.03)


# ------------------------------------------------------------------ the rate


@given(
    mean=st.lists(st.floats(-30, 30), min_size=12, max_size=12),
    log_variance=st.lists(st.floats(-12, 6), min_size=12, max_size=12),
)
def test_the_rate_is_the_divergence_from_the_prior(
    mean: list[float], log_variance: list[float]
) -> None:
    means = torch.tensor(mean, dtype=torch.float64).reshape(2, 6)
    logs = torch.tensor(log_variance, dtype=torch.float64).reshape(2, 6)
    prior = Normal(torch.zeros_like(means), torch.ones_like(means))
    expected = kl_divergence(Normal(means, (logs / 2).exp()), prior)
    posterior = Posterior(means, logs)
    torch.testing.assert_close(posterior.divergence(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(posterior.rate(), expected.sum(dim=1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("levels", LISTS.values(), ids=LISTS)
def test_the_rate_is_the_sum_of_the_rates_by_side(levels: list[Level]) -> None:
    vae, images = _lively(_vae(levels)), torch.rand(3, 1, 32, 32)
    posterior = _infer(vae, images).posterior
    rates = vae.rates(posterior)
    assert list(rates) == [level.side for level in levels]
    assert all(rate.shape == (3,) and (rate > 0).all() for rate in rates.values())
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
    found: list[Tensor] = []

    def choose(number: int, state: Tensor) -> Tensor:
        mean, log_variance = vae.encoder.posterior(number, state, features)
        law = Normal(mean, (0.5 * log_variance).exp())
        found.append(law.log_prob(parts[number]).flatten(1).sum(dim=1))
        return parts[number]

    vae.decoder.top_down(len(image), choose)
    return torch.stack(found).sum(dim=0)


@pytest.mark.parametrize("levels", [VECTOR, TWO, [Level(4, 1, groups=3)]], ids=describe_levels)
def test_the_mean_rate_is_the_divergence_of_the_joint_posterior(levels: list[Level]) -> None:
    """E_q[log q(z|x) − log p(z)] by 2048 draws of one image, log p that of N(0,I).

    With several draws q is no Gaussian, and the rate is another on every way down.
    """
    vae = _lively(_vae(levels)).double().requires_grad_(False)
    image = torch.rand(1, 1, 32, 32).double().expand(256, -1, -1, -1)
    ratios, rates = [], []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        found = vae.infer(image, vae.prior_latents(256, generator))
        log_q = _log_posterior(vae, image, found.latent)
        log_p = -0.5 * (found.latent.square() + math.log(2 * math.pi)).sum(dim=1)
        ratios.append(log_q - log_p)
        rates.append(found.posterior.rate())
    ratio, rate = torch.cat(ratios), torch.cat(rates)
    error = ((ratio - rate).std() / math.sqrt(len(ratio))).item()
    assert error < 0.05 * rate.mean()
    assert abs(ratio.mean() - rate.mean()) < 4 * error
    assert (rate.std() > 0.001 * rate.mean()) == (len(vae.decoder.draws) > 1)


def test_the_prior_costs_nothing() -> None:
    assert Posterior(torch.zeros(3, 7), torch.zeros(3, 7)).rate().tolist() == [0, 0, 0]


def test_draws_follow_the_posterior() -> None:
    mean, log_variance = torch.full((20000, 1), 3.0), torch.full((20000, 1), -2.0)
    drawn = Posterior(mean, log_variance).sample(torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.01)
    assert drawn.var().item() == pytest.approx(torch.tensor(-2.0).exp().item(), rel=0.03)


def test_the_same_generator_draws_the_same() -> None:
    vae = _vae(VECTOR)
    posterior = vae.encode(torch.rand(2, 1, 32, 32))
    one, two = (posterior.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    one, two = (vae.prior_latents(4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (4, 5)


# ------------------------------------------------------------------ closed levels

STAIRS = [Level(4, 2), Level(8, 1, groups=2, opens=0.25), Level(16, 1, opens=0.5)]


def test_a_level_opens_at_its_share_of_the_run_and_not_before() -> None:
    decoder = _vae(STAIRS).decoder
    assert decoder.opened.tolist() == [1, 1, 1], "a model that is not in training is whole"
    steps = ((0.0, 1), (0.2499, 1), (0.25, 2), (0.4999, 2), (0.5, 3), (1.0, 3), (0.0, 1))
    for progress, count in steps:
        assert decoder.open(progress) == count
        assert decoder.opened.tolist() == [1] * count + [0] * (3 - count)


@pytest.mark.parametrize(("progress", "size"), [(0.0, 32), (0.3, 160)])
def test_a_closed_level_is_the_prior_costs_nothing_and_is_not_decoded(
    progress: float, size: int
) -> None:
    vae, images = _lively(_vae(STAIRS)), torch.rand(3, 1, 32, 32)
    whole = vae.prior_latents(3)
    decoded = vae.decode(whole)
    vae.decoder.open(progress)
    found = _infer(vae, images)
    for values in (found.posterior.mean, found.posterior.log_variance, found.latent):
        assert (values[:, :size] != 0).all() and (values[:, size:] == 0).all()
    assert (found.posterior.divergence()[:, size:] == 0).all()
    rates = vae.rates(found.posterior)
    assert [bool(rate.any()) for rate in rates.values()] == [True, progress > 0, False]

    other = whole.clone()
    other[:, size:] = 7 * torch.randn_like(other[:, size:])
    silent = whole.clone()
    silent[:, size:] = 0
    assert torch.equal(vae.decode(whole), vae.decode(other))
    assert torch.equal(vae.decode(whole), vae.decode(silent))
    vae.decoder.open(1.0)
    assert torch.equal(vae.decode(whole), decoded)
    assert not torch.equal(decoded, vae.decode(other))


def test_a_closed_level_leaves_no_weight_without_a_gradient_and_none_astray() -> None:
    """Processes that share a batch wait for a gradient of every weight, be it 0."""
    vae, images = _lively(_vae(STAIRS)), torch.rand(2, 1, 32, 32)
    vae.decoder.open(0.0)
    found = _infer(vae, images)
    ((found.reconstruction - images).square().sum() + found.posterior.rate().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    for number in (1, 2, 3):  # the closed draws
        assert not any(p.grad.any() for p in vae.encoder.heads[number].parameters())
        assert not vae.decoder.draws[number].entry.weight.grad.any()


def test_what_is_open_is_part_of_the_weights() -> None:
    one, two = _vae(STAIRS), _vae(STAIRS)
    one.decoder.open(0.3)
    two.load_state_dict(one.state_dict())
    assert two.decoder.opened.tolist() == [1, 1, 0]


# ------------------------------------------------------------------ where a number of a latent is


def test_the_parts_of_a_latent_go_from_coarse_to_fine_and_draw_by_draw() -> None:
    levels = [Level(4, 3, groups=2), Level(8, 1), Level(16, 2)]
    parts = _vae(levels).decoder.split(torch.arange(96 + 64 + 512.0)[None])
    shapes = [(1, 3, 4, 4), (1, 3, 4, 4), (1, 1, 8, 8), (1, 2, 16, 16)]
    assert [part.shape for part in parts] == shapes
    assert [int(part.flatten()[0]) for part in parts] == [0, 48, 96, 160]
    assert parts[0][0, 1, 0, 0] == 16  # channels,
    assert parts[0][0, 0, 1, 0] == 4  # rows,
    assert parts[0][0, 0, 0, 1] == 1  # columns


def _change(vae: VAE, index: int) -> Tensor:
    """How much each pixel (32,32) changes with one number of a latent."""
    latent = vae.prior_latents(1)
    other = latent.clone()
    other[0, index] += 3.0
    return (vae.decode(other) - vae.decode(latent)).detach().abs()[0, 0]


def _lies_in(change: Tensor, row: int, column: int, pixels: int) -> bool:
    """Whether a change is in that square of the image, and none of it outside."""
    rows, columns = (slice(pixels * k, pixels * k + pixels) for k in (row, column))
    outside = change.clone()
    outside[rows, columns] = 0
    return bool(change[rows, columns].any() and not outside.any())


def _centre(change: Tensor) -> tuple[float, float]:
    """Where the change lies: the centre of its mass, row and column in pixels."""
    places = torch.arange(32.0)
    mass = change / change.sum()
    return (mass.sum(dim=1) @ places).item(), (mass.sum(dim=0) @ places).item()


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 3), (3, 0), (2, 1), (1, 2)])
def test_a_number_of_a_level_of_side_4_changes_its_place_in_the_image(
    row: int, column: int, channel: int
) -> None:
    """At 16·channel + 4·row + column; cell (r,c) are the pixels from (8r,8c) to (8r+7,8c+7)."""
    vae = _local(_vae(TWO, blocks=0))
    assert _lies_in(_change(vae, 16 * channel + 4 * row + column), row, column, 8)


@pytest.mark.parametrize(("row", "column"), [(0, 7), (7, 0), (5, 2)])
def test_a_number_of_the_next_level_follows_those_of_the_first(row: int, column: int) -> None:
    """At 32 + 8·row + column, 32 = 2·4·4; a cell of side 8 has 4×4 pixels."""
    vae = _local(_vae(TWO, blocks=0))
    assert _lies_in(_change(vae, 32 + 8 * row + column), row, column, 4)


def test_the_change_lies_there_with_the_neighbours_included() -> None:
    """With the network as it is, whose convolutions reach their neighbours."""
    vae = _vae(TWO)
    for index, (row, column) in {0: (0, 0), 3: (0, 1), 12: (1, 0), 15: (1, 1)}.items():
        found = _centre(_change(vae, index))
        assert [value > 15.5 for value in found] == [bool(row), bool(column)]


def _local(vae: VAE) -> VAE:
    """The same network with all but the middle of every kernel 0: no pixel sees its neighbours."""
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
    return vae


@pytest.mark.parametrize("shape", [(1, 48, 48), (1, 16, 16), (1, 512, 512)], ids=str)
def test_another_side_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="side must be one of"):
        VAE(shape, _config(VECTOR))


@pytest.mark.parametrize("shape", [(1, 32, 64), (2, 32, 32), (4, 64, 64)], ids=str)
def test_other_channels_and_oblong_images_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="square with 1 or 3 channels"):
        VAE(shape, _config(VECTOR))
