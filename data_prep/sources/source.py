"""What the stage knows of a source: its items, and the function that makes shards of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_prep.config import PrepareConfig
from data_prep.store import Quarantined, SubjectEntry

Outcome = SubjectEntry | Quarantined


class Item(Protocol):
    """What becomes one shard: a subject's volume, or a block of images."""

    @property
    def subject(self) -> str:
        """Its name in the store."""

    def assignment(self) -> dict[str, Any]:
        """The entry's keys that can change without rewriting a pixel: family, and a set's split."""

    def fingerprint(self) -> dict[str, Any]:
        """The keys that an entry and a Quarantined share; equal ones count as unchanged."""


@dataclass(frozen=True)
class Job:
    """One item to transform, as sent to a worker; `store` is the store's folder."""

    item: Any
    config: PrepareConfig
    store: Path


@dataclass(frozen=True)
class Source:
    """What was found, and what all of its images have in common.

    items have names of their own. transform makes an item's shard in a worker process, so it is a
    function of a module; it returns the entry, and a Quarantined for whatever is not usable.
    image_shape is (C, H, W); spacing_mm is between pixels; noun names one of what can fail.
    notes are what the user should know of what was found.
    begin makes the files that are not there yet (simulated people), reporting to the
    function it gets.
    """

    items: Sequence[Item]
    transform: Callable[[Job], list[Outcome]]
    image_shape: tuple[int, int, int]
    spacing_mm: float
    orientation: str
    plane: str
    simulated: bool = False
    noun: str = "subject"
    notes: Sequence[str] = ()
    begin: Callable[[Callable[[str], None]], None] | None = None
