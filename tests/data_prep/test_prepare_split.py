"""Who goes where: by family, and for good."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import SplitConfig
from data_prep.split import SPLITS, split_of, uniform

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@st.composite
def shares(draw: st.DrawFn) -> SplitConfig:
    train, validation = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    return SplitConfig(train, validation - train, 1 - validation, draw(st.text(max_size=4)))


@given(NAMES, shares())
def test_a_family_is_in_one_split_that_has_a_share(family: str, config: SplitConfig) -> None:
    split = split_of(family, config)
    assert split in SPLITS
    assert getattr(config, split) > 0
    assert split == split_of(family, config)


@given(NAMES)
def test_uniform_is_in_the_half_open_unit_interval(family: str) -> None:
    assert 0 <= uniform(family) < 1


def test_nobody_moves_between_programs_or_versions() -> None:
    """Fixed for good: a change here would put test people into training."""
    assert {f: split_of(f, SplitConfig()) for f in ("1000", "1001", "família")} == {
        "1000": "test",
        "1001": "validation",
        "família": "train",
    }


def test_shares_hold_on_average_and_the_salt_draws_again() -> None:
    families = [str(n) for n in range(4000)]
    drawn = [split_of(f, SplitConfig(0.5, 0.3, 0.2)) for f in families]
    for split, share in zip(SPLITS, (0.5, 0.3, 0.2), strict=True):
        assert np.mean([d == split for d in drawn]) == pytest.approx(share, abs=0.03)
    again = [split_of(f, SplitConfig(0.5, 0.3, 0.2, salt="x")) for f in families]
    assert np.mean([a == b for a, b in zip(drawn, again, strict=True)]) < 0.5


def test_shares_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prepare\.split"):
        SplitConfig(0.7, 0.2, 0.2)
