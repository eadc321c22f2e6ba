"""What a preparation prints at its end."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.wording import quantity
from data_prep.config import SplitConfig
from data_prep.plan import copies
from data_prep.report.page import FOLDER, PAGE
from data_prep.store import MANIFEST, SPLITS, Store
from data_prep.volume.plausibility import FORMS_DISAGREE, SAME_SCAN, code_of, words_of

# Of a set's quarantined images, as half of a download would fill the screen; of flagged subjects.
SHOWN_IMAGES, SHOWN_FLAGGED = 20, 10

# A split with less than this part of the share asked for is worth a word.
FEW = 0.6


@dataclass(frozen=True)
class Prepared:
    """A finished preparation.

    made: items that were prepared anew. changed: whether the manifest did. moved: subjects that are
    in another split than before.
    """

    store: Store
    made: int
    changed: bool
    moved: int = 0


def counted(counts: Counter[str]) -> str:
    """Reasons with their numbers: "2 corrupt, 1 empty"."""
    return ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))


def summary(prepared: Prepared, folder: Path) -> list[str]:
    """Lines on what is in the store, what is not and why, and where it lies."""
    store = prepared.store
    images = store.image_set
    # A quarantined image is named BLOCK/FILE.
    items = len({outcome.subject.split("/")[0] for outcome in store.outcomes})
    lines = []
    if not prepared.changed and not prepared.made:
        lines.append(f"nothing to do: {store.name} is up to date")
    elif prepared.made < items:
        made = quantity(prepared.made, "block" if images else "subject")
        lines.append(f"{made} prepared, the others kept as they were")
    if prepared.moved:
        lines.append(
            f"in another split than before: {quantity(prepared.moved, 'subject')}; runs that were "
            "trained on this store will have to be trained anew"
        )
    lines += _image_set_lines(store) if images else _subject_lines(store)
    reasons = Counter(q.reason for q in store.quarantined)
    lines.append(
        f"quarantined: {len(store.quarantined)}" + (f" ({counted(reasons)})" if reasons else "")
    )
    told = [f"  {q.subject}: {q.reason}: {q.message}" for q in store.quarantined]
    lines += _some(told, SHOWN_IMAGES if images else len(told), f"see {folder / MANIFEST}")
    if store.simulated:
        lines.append("these people are SIMULATED: deformed copies of one template, not real scans")
    lines.append(f"store: {folder}")
    lines.append(f"quality report: {folder / FOLDER / PAGE}")
    return lines


def _some(lines: list[str], shown: int, rest: str) -> list[str]:
    more = [f"  and {len(lines) - shown} more: {rest}"] if len(lines) > shown else []
    return [*lines[:shown], *more]


def _image_set_lines(store: Store) -> Iterator[str]:
    for split in SPLITS:
        numbers = [len(entry.slice_indices) for entry in store.subjects(split)]
        yield f"{split}: {quantity(sum(numbers), 'image')} in {quantity(len(numbers), 'block')}"


def _subject_lines(store: Store) -> Iterator[str]:
    for split in SPLITS:
        entries = store.subjects(split)
        slices = sum(len(entry.slice_indices) for entry in entries)
        families = len({entry.family for entry in entries})
        yield (
            f"{split}: {quantity(len(entries), 'subject')} of {quantity(families, 'family')}, "
            f"{quantity(slices, 'slice')}"
        )
        share = SplitConfig(**store.manifest["configuration"]["split"]).shares[split]
        if families < FEW * share * len({entry.family for entry in store.entries}):
            yield (
                f"  {'few' if entries else 'none'}, where prepare.split asks for {share:.0%}: "
                "subjects keep their split; another prepare.split.salt draws another split"
            )
    cropped = sum(entry.cropped for entry in store.entries)
    if cropped:
        height, width = (n * store.spacing_mm for n in store.image_shape[1:])
        yield (
            f"larger than the {height:g} x {width:g} mm of a slice: the brain of "
            f"{quantity(cropped, 'subject')}, whose rim is cut off"
        )
    apart = [entry.subject for entry in store.entries if FORMS_DISAGREE in entry.flags]
    if apart:
        yield (
            "a qform more than a voxel away from the sform, which is used: "
            f"{quantity(len(apart), 'subject')}, {', '.join(apart[:SHOWN_FLAGGED])}"
            + (", …" * (len(apart) > SHOWN_FLAGGED))
        )
    groups = copies(store.entries)
    twins = [
        f"{' and '.join(entry.subject for entry in group)} are one scan, and so one family, in "
        f"{group[0].split}"
        for group in groups
    ]
    yield from _some(twins, SHOWN_FLAGGED, "scans with several names")
    if groups:
        yield "  a scan that is there twice counts twice: take one of its files away"
    flagged = []
    for entry in store.entries:
        # The others have lines of their own.
        odd = [words_of(f) for f in entry.flags if code_of(f) not in (FORMS_DISAGREE, SAME_SCAN)]
        if odd:
            flagged.append(f"  {entry.subject}: {'; '.join(odd)}")
    if flagged:
        yield f"flagged, and used: {quantity(len(flagged), 'subject')}"
        yield from _some(flagged, SHOWN_FLAGGED, "see the quality report")
