"""The section `model`: what can't be is refused by name; levels are plain values in a file."""

import math
import re

import pytest

from pipeline.models.config import Level, ModelConfig, describe_levels
from pipeline.models.vae import VAE

GOOD = {"side": 4, "channels": 2}


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([], "coarse to fine"),
        ([GOOD | {"side": 8}, GOOD], "coarse to fine, not by sides [8, 4]"),
        ([GOOD, GOOD], "coarse to fine, not by sides [4, 4]"),
        ([GOOD, GOOD | {"side": 1}], "coarse to fine, not by sides [4, 1]"),
        ([GOOD | {"side": 2}], "a side in model.levels must be 1, 4, 8, 16, …, not 2"),
        ([GOOD | {"side": 6}], "not 6"),
        ([GOOD | {"side": 0}], "not 0"),
        ([GOOD | {"side": -4}], "not -4"),
        ([GOOD | {"channels": 0}], "channels in model.levels must be at least 1, not 0"),
        ([GOOD | {"groups": 0}], "groups in model.levels must be at least 1, not 0"),
        ([GOOD | {"groups": 10**9}], "groups in model.levels must be"),  # of a tampered package
        ([GOOD | {"opens": -0.1}], "opens in model.levels must be in [0, 1), not -0.1"),
        ([GOOD | {"opens": 1.0}], "opens in model.levels must be in [0, 1), not 1.0"),
        ([GOOD | {"opens": math.nan}], "opens in model.levels"),
        ([GOOD | {"opens": 0.1}], "the first at 0, not at [0.1]"),
        ([GOOD, {"side": 8, "channels": 1, "opens": 0.5}, {"side": 16, "channels": 1}],
         "open from coarse to fine, the first at 0, not at [0.0, 0.5, 0.0]"),
        ([GOOD | {"depth": 3}], "'depth'"),
        ([{"side": 4}], "'channels'"),
        ([4], "model.levels holds side, channels, groups, opens"),
    ],
)  # fmt: skip
def test_levels_that_cannot_be_are_refused_by_name(levels: list[object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        ModelConfig(levels=levels)  # type: ignore[arg-type]
    assert "model.levels" in str(refused.value)


@pytest.mark.parametrize("side", [32, 64, 128, 256])
def test_a_level_finer_than_half_the_image_is_refused_by_name(side: int) -> None:
    said = f"model.levels has a side of {side}: for images of {side}² the finest is {side // 2}"
    with pytest.raises(ValueError, match=re.escape(said)):
        VAE((1, side, side), ModelConfig(levels=[Level(4, 1), Level(side, 1)]))


@pytest.mark.parametrize(
    ("key", "value"),
    [("width", 0), ("width", 6), ("max_width", 0), ("residual_blocks", -1), ("kernel_hidden", 0)],
)
def test_a_size_that_cannot_be_is_refused_by_name(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"model\.{key}"):
        ModelConfig(**{key: value})  # type: ignore[arg-type]


def test_levels_are_read_from_plain_values_and_shown_in_words() -> None:
    """As a run's file and a package's metadata hold them."""
    plain = [{"side": 4, "channels": 16}, {"side": 8, "channels": 8, "groups": 2, "opens": 0.2}]
    config = ModelConfig(levels=plain)  # type: ignore[arg-type]
    assert config.levels == [Level(4, 16), Level(8, 8, groups=2, opens=0.2)]
    assert config.latent_size == 16 * 4 * 4 + 2 * 8 * 8 * 8
    assert [level.side for level in config.draws] == [4, 8, 8]
    assert describe_levels(config.levels) == "4²×16, 8²×8 (2 draws)"
