"""The descriptions of runs: Markdown in sections, each of which can be written again."""

import re
from collections.abc import Sequence

# MLflow keeps a description as a tag of at most 8,000 characters.
LONGEST_NOTE = 7500
CUT = "\n\n… (cut: the rest is under *Artifacts*)\n"


def with_section(note: str, heading: str, body: str, first: bool = False) -> str:
    """A note whose section `### heading` is `body`, in the place of an earlier one or at the end.

    What else is in the note, somebody's own words, say, stays. With `first` the section comes
    before the others: MLflow shows a description's first lines, and the rest when asked.

    Example:
        >>> print(with_section("Own words.", "Scores", "30 dB"))
        Own words.
        <BLANKLINE>
        ### Scores
        <BLANKLINE>
        30 dB
        <BLANKLINE>
    """
    title = f"### {heading}"
    parts = [part.strip() for part in re.split(r"(?m)^(?=### )", note) if part.strip()]
    places = [i for i, part in enumerate(parts) if part.partition("\n")[0].strip() == title]
    for place in reversed(places):
        del parts[place]
    place = 0 if first else places[0] if places else len(parts)
    parts.insert(place, f"{title}\n\n{body.strip()}")
    text = "\n\n".join(parts) + "\n"
    if len(text) > LONGEST_NOTE:
        kept = text[: LONGEST_NOTE - len(CUT)]
        text = kept[: kept.rfind("\n")] + CUT
    return text


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
