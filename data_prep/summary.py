"""What a preparation prints at its end."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.wording import quantity
from data_prep.config import SplitConfig
from data_prep.flags import FORMS_DISAGREE, SAME_SCAN, code_of, words_of
from data_prep.report.writing import FOLDER, PAGE
from data_prep.same_scan import described
from data_prep.split import SPLITS
from data_prep.store import MANIFEST, Store

# Of a set's quarantined images; half of a download would fill the screen.
SHOWN_IMAGES = 20

# A split with less than this part of the share asked for is worth a word.
FEW = 0.6

# Of flagged subjects, by name.
SHOWN_FLAGGED = 10


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


# Flags that have lines of their own.
TOLD = (FORMS_DISAGREE, SAME_SCAN)


def counted(counts: Counter[str]) -> str:
    """Reasons with their numbers: "2 corrupt, 1 empty"."""
    return ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))


def summary(prepared: Prepared, folder: Path) -> list[str]:
    """Lines on what is in the store, what is not and why, and where it lies."""
    store = prepared.store
    images = store.image_set
    item = "block" if images else "subject"
    lines = []
    if not prepared.changed and not prepared.made:
        lines.append(f"nothing to do: {store.name} is up to date")
    elif prepared.made < _items(store):
        lines.append(f"{quantity(prepared.made, item)} prepared, the others kept as they were")
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
    shown = store.quarantined[: SHOWN_IMAGES if images else None]
    lines += [f"  {q.subject}: {q.reason}: {q.message}" for q in shown]
    if len(shown) < len(store.quarantined):
        lines.append(f"  and {len(store.quarantined) - len(shown)} more: see {folder / MANIFEST}")
    if store.simulated:
        lines.append("these people are SIMULATED: deformed copies of one template, not real scans")
    lines.append(f"store: {folder}")
    lines.append(f"quality report: {folder / FOLDER / PAGE}")
    return lines


def _subject_lines(store: Store) -> list[str]:
    lines = []
    for split in SPLITS:
        entries = store.subjects(split)
        slices = sum(len(entry.slice_indices) for entry in entries)
        families = len({entry.family for entry in entries})
        lines.append(
            f"{split}: {quantity(len(entries), 'subject')} of {quantity(families, 'family')}, "
            f"{quantity(slices, 'slice')}"
        )
        share = SplitConfig(**store.manifest["configuration"]["split"]).shares[split]
        if families < FEW * share * len({entry.family for entry in store.entries}):
            lines.append(
                f"  {'few' if entries else 'none'}, where prepare.split asks for {share:.0%}: "
                "subjects keep their split; another prepare.split.salt draws another split"
            )
    cropped = sum(entry.cropped for entry in store.entries)
    if cropped:
        height, width = (n * store.spacing_mm for n in store.image_shape[1:])
        lines.append(
            f"larger than the {height:g} x {width:g} mm of a slice: the brain of "
            f"{quantity(cropped, 'subject')}, whose rim is cut off"
        )
    apart = [entry.subject for entry in store.entries if FORMS_DISAGREE in entry.flags]
    if apart:
        lines.append(
            "a qform more than a voxel away from the sform, which is used: "
            f"{quantity(len(apart), 'subject')}, {', '.join(apart[:SHOWN_FLAGGED])}"
            + (", …" * (len(apart) > SHOWN_FLAGGED))
        )
    return lines + described(store.entries, SHOWN_FLAGGED) + _flag_lines(store)


def _flag_lines(store: Store) -> list[str]:
    """What else is odd about subjects that were prepared: who, and what."""
    found = {
        entry.subject: [words_of(one) for one in entry.flags if code_of(one) not in TOLD]
        for entry in store.entries
    }
    flagged = [(subject, words) for subject, words in found.items() if words]
    if not flagged:
        return []
    lines = [f"flagged, and used: {quantity(len(flagged), 'subject')}"]
    lines += [f"  {subject}: {'; '.join(words)}" for subject, words in flagged[:SHOWN_FLAGGED]]
    if len(flagged) > SHOWN_FLAGGED:
        lines.append(f"  and {len(flagged) - SHOWN_FLAGGED} more: see the quality report")
    return lines


def _image_set_lines(store: Store) -> list[str]:
    counts = {split: [len(e.slice_indices) for e in store.subjects(split)] for split in SPLITS}
    return [
        f"{split}: {quantity(sum(n), 'image')} in {quantity(len(n), 'block')}"
        for split, n in counts.items()
    ]


def _items(store: Store) -> int:
    """Subjects or blocks; a quarantined image is named BLOCK/FILE."""
    names = [entry.subject for entry in store.entries]
    names += [entry.subject for entry in store.quarantined]
    return len({name.split("/")[0] for name in names})
