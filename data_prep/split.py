"""Splits of families: filled to the shares, in the order of a hash of the families' names."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from data_prep.config import SplitConfig

SPLITS = ("train", "validation", "test")

# From so many families on, the hash alone decides: shares hold well enough on average, and stores
# of one study that were made at different times agree.
MANY = 500


def uniform(family: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on `salt` and `family` only: the first 53 bits of SHA-256."""
    digest = hashlib.sha256(f"{salt}\0{family}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_of(family: str, config: SplitConfig) -> str:
    """The split ("train", "validation", "test") of a family among MANY, whoever the others are."""
    position = uniform(family, config.salt)
    if position < config.train:
        return "train"
    # A share of exactly zero must stay empty even where 0.7 + 0.3 is not quite 1 in binary.
    if position < config.train + config.validation or config.test == 0:
        return "validation" if config.validation > 0 else "train"
    return "test"


def split_families(
    families: Iterable[str], config: SplitConfig, kept: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The split of every family.

    Below MANY families, the numbers are the shares' to within one family (largest remainder), and
    each split with a share has a family where there are enough. Families that are `kept` in the
    split that they had do not move; new ones fill what lacks most. With folds nothing is kept: the
    set of families alone decides, so that each is tested in exactly one fold.
    """
    kept = {} if kept is None or config.fold else dict(kept)
    new = sorted(set(families) - set(kept), key=lambda name: (uniform(name, config.salt), name))
    if config.fold:
        return _fold(new, config)
    if len(new) + len(kept) >= MANY:
        return kept | {family: split_of(family, config) for family in new}
    return kept | _filled(new, config.shares, kept)


def _filled(
    ordered: Sequence[str], shares: Mapping[str, float], kept: Mapping[str, str]
) -> dict[str, str]:
    """The families in order, cut where the splits have what the shares leave them beside `kept`."""
    shares = {split: share for split, share in shares.items() if share}
    families, counts = len(ordered) + len(kept), Counter(kept.values())
    for _ in ordered:
        counts[max(shares, key=lambda s: (not counts[s], shares[s] * families - counts[s]))] += 1
    room = counts - Counter(kept.values())
    return dict(zip(ordered, (s for s in SPLITS for _ in range(room[s])), strict=True))


def _fold(ordered: Sequence[str], config: SplitConfig) -> dict[str, str]:
    """The n-th of k equal parts is for testing; what follows it, in a circle, is the others'."""
    number, folds = config.folds
    start, stop = ((n * len(ordered) + folds - 1) // folds for n in (number - 1, number))
    test = dict.fromkeys(ordered[start:stop], "test")
    rest = {split: config.shares[split] / (1 - 1 / folds) for split in ("train", "validation")}
    return test | _filled([*ordered[stop:], *ordered[:start]], rest, {})
