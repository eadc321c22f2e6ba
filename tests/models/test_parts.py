"""The kernel network, the prior of samples, and the sections `model` and `prior`."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal

from pipeline.blur.kernel_loss import kernel_width
from pipeline.blur.spectrum import transfer_function
from pipeline.config import TrainingConfig
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import Level, ModelConfig, PriorConfig, describe_levels
from pipeline.models.kernel_network import KernelNetwork
from pipeline.models.prior import LatentPrior, pieces_of
from pipeline.models.vae import VAE

# ------------------------------------------------------------------ kernels

VECTOR = [Level(1, 7)]
FINE = [Level(16, 2)]
SOME = [Level(4, 3), Level(8, 2, groups=2), Level(32, 1)]


def _network(side: int, levels: list[Level]) -> tuple[KernelNetwork, int]:
    """The network, and the size of its latents."""
    config = ModelConfig(levels=levels, kernel_hidden=16)
    return KernelNetwork(side, config), config.latent_size


@pytest.mark.parametrize("levels", [VECTOR, FINE, SOME], ids=describe_levels)
@given(magnitude=st.floats(0, 100), seed=st.integers(0, 1000))
def test_a_kernel_is_non_negative_and_sums_to_one(
    levels: list[Level], magnitude: float, seed: int
) -> None:
    torch.manual_seed(seed)
    network, size = _network(5, levels)
    kernel = network(magnitude * torch.randn(3, size))
    assert kernel.shape == (3, 1, 5, 5)
    assert kernel.min() >= 0
    assert kernel.sum(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("side", [3, 11, 41])
@pytest.mark.parametrize("levels", [[Level(1, 64)], ModelConfig().levels], ids=describe_levels)
def test_at_first_it_is_peaked_and_loses_no_frequency(side: int, levels: list[Level]) -> None:
    network, size = _network(side, levels)
    kernel = network(torch.randn(16, size))
    assert (kernel.flatten(1).argmax(dim=1) == side**2 // 2).all()
    assert transfer_function(kernel, (64, 64)).abs().min() > 0.5
    assert kernel_width(kernel).max() < 1.0
    kernel[:, 0, 0, 0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_sides_above_8_are_averaged_to_8_and_others_left() -> None:
    """The hidden layer's weights do not grow with the image's area."""
    network, size = _network(5, [Level(4, 3), Level(8, 1), Level(32, 2)])
    assert network.body[0].in_features == 3 * 4 * 4 + 8 * 8 + 2 * 8 * 8
    latent = torch.randn(2, size)
    seen: list[Tensor] = []
    network.body[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(latent)
    means = latent[:, 112:].reshape(2, 2, 8, 4, 8, 4).mean(dim=(3, 5))  # of 4×4 numbers each
    torch.testing.assert_close(seen[0], torch.cat([latent[:, :112], means.flatten(1)], dim=1))


def test_half_precision_around_it_does_not_reach_the_kernel() -> None:
    network, size = _network(11, VECTOR)
    latent = torch.randn(2, size)
    expected = network(latent)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(latent), expected)
    assert expected.min() > 0
    with pytest.raises(ValueError, match="odd"):
        _network(4, VECTOR)


# ------------------------------------------------------------------ the prior of samples

L, K, MEMBERS = 6, 3, 4


def _posteriors() -> tuple[Tensor, Tensor]:
    """Means and standard deviations of three groups of four slices, far apart; float64."""
    means = torch.randn(K, MEMBERS, L, dtype=torch.float64) + 20 * torch.arange(K)[:, None, None]
    return means, 0.1 + torch.rand(K, MEMBERS, L, dtype=torch.float64)


@pytest.mark.parametrize("piece", range(K))
def test_a_piece_has_its_groups_mean_and_covariance(piece: int) -> None:
    posteriors = _posteriors()
    noise = torch.randn(100_000, L + MEMBERS)
    noise[:, -1] = Normal(0.0, 1.0).icdf(torch.tensor((piece + 0.5) / K))
    drawn = pieces_of(*posteriors, torch.Generator().manual_seed(0))(noise)
    means, deviations = (values[piece].float() for values in posteriors)
    torch.testing.assert_close(drawn.mean(dim=0), means.mean(dim=0), rtol=0, atol=0.02)
    expected = torch.cov(means.T) + deviations.square().mean(dim=0).diag()
    torch.testing.assert_close(torch.cov(drawn.T), expected, rtol=0.03, atol=0.02)


def test_draws_are_as_far_from_the_centre_as_another_member_would_be() -> None:
    """Of members that are equally far apart: √(m/(m−1)) times as far as these, who define it."""
    means = torch.eye(L)[None, :MEMBERS]
    prior = pieces_of(means, torch.zeros(1, MEMBERS, L))
    apart = (prior.sample(500) - means[0].mean(dim=0)).norm(dim=1)
    members = (means[0] - means[0].mean(dim=0)).norm(dim=1)
    expected = members[0].item() * math.sqrt(MEMBERS / (MEMBERS - 1))
    assert apart.tolist() == pytest.approx([expected] * 500, rel=1e-5)


def test_draws_lie_in_what_the_members_span_and_no_column_is_one_of_them() -> None:
    means, _ = _posteriors()
    prior = pieces_of(means, torch.zeros_like(means))
    for piece in range(K):
        apart = (means[piece] - means[piece].mean(dim=0)).float()
        factors = prior.factors[piece]
        projected = apart.T @ torch.linalg.pinv(apart.T) @ factors
        torch.testing.assert_close(projected, factors, rtol=1e-4, atol=1e-4)
        columns = torch.nn.functional.normalize(factors, dim=0)
        assert (torch.nn.functional.normalize(apart) @ columns).abs().max() < 0.999


@pytest.mark.parametrize(("share", "piece"), [(0.0, 0), (0.32, 0), (0.34, 1), (0.67, 2), (1.0, 2)])
def test_the_last_number_chooses_the_piece(share: float, piece: int) -> None:
    prior = pieces_of(*_posteriors())
    noise = torch.zeros(1, prior.noise_size)
    noise[0, -1] = torch.special.ndtri(torch.tensor(share))  # infinite at 0 and 1
    noise[0, L] = 1.0
    assert prior(noise)[0].mean().item() == pytest.approx(20 * piece, abs=5)


def test_before_it_is_fitted_it_is_standard_normal_and_a_generator_draws_the_same_again() -> None:
    prior, noise = LatentPrior(L, K, 2), torch.randn(20, L + 3)
    torch.testing.assert_close(prior(noise), noise[:, :L])
    one, two = (prior.sample(100, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (100, L)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (6, 0, 1), (6, 1, 0)])
def test_sizes_that_cannot_be_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no prior has"):
        LatentPrior(*sizes)


# ------------------------------------------------------------------ sections

GOOD = {"side": 4, "channels": 2}


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([], "coarse to fine"),
        ([GOOD | {"side": 8}, GOOD], "coarse to fine, not by sides [8, 4]"),
        ([GOOD, GOOD], "coarse to fine, not by sides [4, 4]"),
        ([GOOD | {"side": 2}], "a side in model.levels must be 1, 4, 8, 16, …, not 2"),
        ([GOOD | {"side": 6}], "not 6"),
        ([GOOD | {"channels": 0}], "model.levels.channels must be >= 1, not 0"),
        ([GOOD | {"groups": 0}], "model.levels.groups must be >= 1, <= 64, not 0"),
        ([GOOD | {"groups": 10**9}], "model.levels.groups must be"),  # of a tampered package
        ([GOOD | {"opens": 1.0}], "model.levels.opens must be >= 0, < 1, not 1.0"),
        ([GOOD | {"opens": math.nan}], "model.levels.opens"),
        ([GOOD | {"opens": 0.1}], "the first at 0, not at [0.1]"),
        ([GOOD, {"side": 8, "channels": 1, "opens": 0.5}, {"side": 16, "channels": 1}],
         "open from coarse to fine, the first at 0, not at [0.0, 0.5, 0.0]"),
        ([GOOD | {"depth": 3}], "'depth'"),
        ([{"side": 4}], "'channels'"),
        ([4], "model.levels holds side, channels, groups, opens"),
    ],
)  # fmt: skip
def test_levels_that_cannot_be_are_refused_by_name(levels: list[object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        ModelConfig(levels=levels)  # type: ignore[arg-type]
    assert "model.levels" in str(refused.value)


BAD = {
    "model": (ModelConfig, "width=0 width=6 max_width=0 residual_blocks=-1 kernel_hidden=0"),
    "prior": (PriorConfig, "pieces=-1 subjects=1 images=1 augmentation=1.5 seed=-1"),
    "likelihood": (
        LikelihoodConfig,
        "scale=0 scale=-1 constant=0 kernel_size=4 kernel_size=1 warmup_epochs=-1 residual_floor=0 "
        "residual_steps=0",
    ),
    "training": (
        TrainingConfig,
        "epochs=0 batch_size=-1 learning_rate=0 beta=-1 max_minutes=-1 ema_decay=1 rate_target=0 "
        "gradient_clip=-.1 threads=-1 seed=-1 accumulation=0 keep_checkpoints=0 max_skipped=-1 "
        "checkpoint_minutes=-1 lr_warmup_steps=-1 rate_warmup_steps=-1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_setting_that_cannot_be_is_refused_by_name(name: str) -> None:
    section, settings = BAD[name]
    for key, _, value in (setting.partition("=") for setting in settings.split()):
        with pytest.raises(ValueError, match=rf"{name}\.{key}"):
            section(**{key: float(value)})


def test_levels_are_read_from_plain_values_and_shown_in_words() -> None:
    """As a run's file and a package's metadata hold them; the finest is half the image's side."""
    plain = [{"side": 4, "channels": 16}, {"side": 8, "channels": 8, "groups": 2, "opens": 0.2}]
    config = ModelConfig(levels=plain)  # type: ignore[arg-type]
    assert config.levels == [Level(4, 16), Level(8, 8, groups=2, opens=0.2)]
    assert config.latent_size == 16 * 4 * 4 + 2 * 8 * 8 * 8
    assert [level.side for level in config.draws] == [4, 8, 8]
    assert describe_levels(config.levels) == "4²×16, 8²×8 (2 draws)"
    words = "model.levels has a side of 64: for images of 64² the finest is 32"
    with pytest.raises(ValueError, match=re.escape(words)):
        VAE((1, 64, 64), ModelConfig(levels=[Level(4, 1), Level(64, 1)]))
