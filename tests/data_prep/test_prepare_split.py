"""Who goes where: whole families, to the shares, and for good."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import SplitConfig
from data_prep.plan import MANY, SPLITS, split_families, split_of, uniform

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
FAMILIES = st.sets(NAMES, max_size=40)


@st.composite
def shares(draw: st.DrawFn) -> SplitConfig:
    train, validation = sorted(draw(st.tuples(st.integers(0, 20), st.integers(0, 20))))
    numbers = (train, validation - train, 20 - validation)
    return SplitConfig(*(number / 20 for number in numbers), draw(st.text(max_size=4)))


def off(split: dict[str, str], config: SplitConfig) -> dict[str, float]:
    """Families that each split has more than its share."""
    counts = Counter(split.values())
    return {name: counts[name] - share * len(split) for name, share in config.shares.items()}


def has_all(split: dict[str, str], config: SplitConfig) -> bool:
    """Whether each split with a share has a family, as far as there are families."""
    asked = sum(share > 0 for share in config.shares.values())
    return len(set(split.values())) == min(asked, len(split))


@pytest.mark.parametrize(
    ("families", "shares", "counts"),
    [
        (21, (0.6, 0.2, 0.2), [13, 4, 4]),
        (10, (0.6, 0.2, 0.2), [6, 2, 2]),
        (20, (0.7, 0.15, 0.15), [14, 3, 3]),
        (3, (0.9, 0.05, 0.05), [1, 1, 1]),
        (2, (0.5, 0.5, 0), [1, 1, 0]),
        (1, (0.2, 0.7, 0.1), [0, 1, 0]),
    ],
)
def test_shares_of_small_studies(
    families: int, shares: tuple[float, float, float], counts: list[int]
) -> None:
    split = split_families(map(str, range(families)), SplitConfig(*shares))
    assert [Counter(split.values())[name] for name in SPLITS] == counts


@given(FAMILIES, shares())
@settings(max_examples=60)
def test_shares_hold_to_a_family_and_no_split_with_a_share_is_empty(
    families: set[str], config: SplitConfig
) -> None:
    split = split_families(families, config)
    assert set(split) == families
    assert split == split_families(sorted(families, reverse=True), config)
    assert all(config.shares[name] > 0 for name in split.values())
    assert has_all(split, config)
    if 1 not in Counter(split.values()).values():  # none was given the one that it has
        assert all(abs(more) < 1 for more in off(split, config).values())


@given(st.lists(NAMES, unique=True, min_size=2, max_size=40), shares(), st.data())
@settings(max_examples=40)
def test_nobody_moves_when_families_come_and_go_and_shares_still_hold(
    families: list[str], config: SplitConfig, data: st.DataObject
) -> None:
    some = data.draw(st.integers(0, len(families)))
    split = split_families(families[:some], config)
    for family in families[some:]:
        grown = split_families([*split, family], config, split)
        assert grown.items() >= split.items()
        split = grown
    assert has_all(split, config)
    if min(Counter(split.values()).values()) > 1:
        assert all(abs(more) <= 1 for more in off(split, config).values())
    left = {name: split[name] for name in families[1:]}
    assert split_families(left, config, left) == left


@given(FAMILIES, st.integers(2, 6), shares(), NAMES)
@settings(max_examples=40)
def test_every_family_is_tested_in_exactly_one_fold(
    families: set[str], folds: int, config: SplitConfig, another: str
) -> None:
    if config.test == 1:
        return
    parts = [
        SplitConfig(config.train, config.validation, config.test, config.salt, f"{n + 1}/{folds}")
        for n in range(folds)
    ]
    splits = [split_families(families, part, dict.fromkeys(families, "train")) for part in parts]
    for family in families:
        assert [split[family] for split in splits].count("test") == 1
    for part, split in zip(parts, splits, strict=True):
        assert set(split) == families
        assert abs(off(split, part)["test"]) < 1
        assert all(abs(more) <= 2 for more in off(split, part).values())
        assert all(part.shares[name] > 0 for name in split.values())
        more = split_families({*families, another}, part)
        moved = sum(more[family] != split[family] for family in families)
        assert moved <= 3  # one at each boundary


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
    assert split_families(["1000", "1001", "1002", "família"], SplitConfig(0.5, 0.25, 0.25)) == {
        "1000": "test",
        "1001": "validation",
        "1002": "train",
        "família": "train",
    }


def test_among_many_families_the_hash_alone_decides_and_the_salt_draws_again() -> None:
    families = [str(n) for n in range(MANY)]
    config = SplitConfig(0.5, 0.3, 0.2)
    drawn = split_families(families, config)
    assert drawn == {family: split_of(family, config) for family in families}
    again = split_families(families, SplitConfig(0.5, 0.3, 0.2, salt="x"))
    assert sum(drawn[family] == again[family] for family in families) < MANY / 2
    few = dict.fromkeys(families[:20], "test")
    assert split_families(families, config, few).items() >= few.items()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("prepare.split", {"train": 0.7, "validation": 0.2, "test": 0.2}),
        ("prepare.split.test", {"train": 0.7, "validation": 0.7, "test": -0.4}),
        *(("prepare.split.fold", {"fold": fold}) for fold in ("0/5", "6/5", "1/1", "2", "-1/5")),
    ],
)
def test_wrong_shares_and_folds_are_refused(key: str, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        SplitConfig(**values)  # type: ignore[arg-type]
