"""Which split a family belongs to, decided by a hash of its name alone."""

import hashlib

from data_prep.config import SplitConfig

SPLITS = ("train", "validation", "test")


def uniform(family: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on `salt` and `family` only: the first 53 bits of SHA-256."""
    digest = hashlib.sha256(f"{salt}\0{family}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_of(family: str, config: SplitConfig) -> str:
    """The split ("train", "validation" or "test") of all subjects of `family`.

    It depends on no other family: no subject moves when others are added or removed. The price is
    that the shares hold on average only: a small cohort may come out uneven, and another
    `config.salt` draws again.
    """
    position = uniform(family, config.salt)
    if position < config.train:
        return "train"
    # A share of exactly zero must stay empty even where 0.7 + 0.3 is not quite 1 in binary.
    if position < config.train + config.validation or config.test == 0:
        return "validation" if config.validation > 0 else "train"
    return "test"
