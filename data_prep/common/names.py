"""Names: from a file system or a table into the store, and from the store to file names.

A subject may be called anything that a folder can be called. In the store its name is printable
text, the same on every machine; its shard's file name is ASCII.
"""

import hashlib
import os
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote

# Values of tables where a family is not known: BIDS' n/a, the words that pandas reads as missing
# (pandas.read_csv, na_values), those of statistics programs, and negative codes. In lower case.
UNKNOWN = frozenset({
    "", "n/a", "na", "nan", "null", "none", "nil", "<na>", "#n/a", "#na", "#n/a n/a", "-nan",
    "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", ".", "-", "--", "?", "unknown", "missing",
    "-1", "-9", "-99", "-999", "-9999",
})  # fmt: skip

# Digits of the content's SHA-256 in a shard's file name.
DIGITS = 12

# Room of a file name, less what a shard and its temporary file add to a subject's name.
LONGEST = 255 - len("...npy.01234567.tmp") - DIGITS


def is_unknown(value: str) -> bool:
    """True for a table's value that stands for "not known"."""
    return value.strip().lower() in UNKNOWN


def as_text(path: str) -> str:
    """A path of the file system as text that does not depend on this machine's locale.

    Bytes that are no UTF-8 become surrogates, as Python's `surrogateescape` has them.
    """
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def as_path(text: str) -> str:
    """The path that `as_text` was made of."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def printable(name: str) -> str:
    """A name in one Unicode form (NFC), percent signs and hexadecimal for what cannot be printed.

    >>> printable("pre+post 1\\n")
    'pre+post 1%0A'
    """
    return "".join(
        c if c.isprintable() else quote(c.encode("utf-8", "surrogateescape"))
        for c in unicodedata.normalize("NFC", name)
    )


def same(name: str) -> str:
    """A form that is equal where a table and a file system mean one name."""
    return printable(name).strip()


def shard_name(subject: str) -> str:
    """A subject's file name: its own where that is plain, else percent-encoded, and unique.

    >>> shard_name("100307"), shard_name("pre+post"), shard_name("../x")
    ('100307', 'pre%2Bpost', '%2E.%2Fx')
    """
    encoded = quote(subject, safe="")
    if encoded.startswith("."):  # hidden, as the temporary files are
        encoded = f"%2E{encoded[1:]}"
    if len(encoded) <= LONGEST:
        return encoded
    digest = hashlib.sha256(subject.encode()).hexdigest()[:32]
    return f"{encoded[: LONGEST - 33]}%{digest}"


def joined(pairs: Iterable[tuple[str, str]], preferred: Iterable[str] = ()) -> dict[str, str]:
    """One name for all that belong together.

    Args:
        pairs: names that mean the same.
        preferred: names that are taken where there is a choice; else the first in order.

    Returns:
        By name, that of its group.

    >>> joined([("b", "a"), ("c", "b"), ("e", "d")], preferred=["e"])
    {'a': 'a', 'b': 'a', 'c': 'a', 'd': 'e', 'e': 'e'}
    """
    chosen = set(preferred)
    group: dict[str, set[str]] = {}
    for pair in pairs:
        together = set(pair).union(*(group.get(name, ()) for name in pair))
        group |= dict.fromkeys(together, together)
    order = {id(names): min(names, key=lambda n: (n not in chosen, n)) for names in group.values()}
    return {name: order[id(names)] for name, names in sorted(group.items())}
