"""Keys that are true or false mean true where no value follows: --prepare.dry_run."""

from collections.abc import Collection, Sequence
from dataclasses import fields, is_dataclass
from typing import get_type_hints


def switch_keys(settings: type, prefix: str = "--") -> set[str]:
    """The options of a dataclass, and of those within it, that are true or false.

    Example:
        >>> sorted(switch_keys(PrepareConfig, "--prepare."))[:2]
        ['--prepare.check', '--prepare.download']
    """
    hints = get_type_hints(settings)
    found = set()
    for name in (field.name for field in fields(settings)):
        if hints[name] is bool:
            found.add(f"{prefix}{name}")
        elif isinstance(hints[name], type) and is_dataclass(hints[name]):
            found |= switch_keys(hints[name], f"{prefix}{name}.")
    return found


def switched(arguments: Sequence[str], keys: Collection[str]) -> list[str]:
    """The arguments with each bare one of `keys` read as `key=true`."""
    follows = [*arguments, "--"][1:]
    return [
        f"{word}=true" if word in keys and after.startswith("--") else word
        for word, after in zip(arguments, follows, strict=True)
    ]
