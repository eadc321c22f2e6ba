"""The page of a comparison: tables that can be sorted, and plots; comparison.html lays it out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep import data_uri, page_templates
from pipeline.comparison.leaderboard import (
    Result,
    Table,
    at_rates,
    notes,
    rows_of,
    tables_of,
    tabulated,
)
from pipeline.files import atomic_file

PAGE = "report.html"
TEMPLATE = "comparison.html"


@dataclass(frozen=True)
class Plot:
    """A figure: its address and what it shows; lines: a plot; wide: as wide as the page."""

    address: str
    alt: str
    lines: bool
    wide: bool


@dataclass(frozen=True)
class Page:
    """What the page is made of.

    conditions: what all runs have in common; missing: rows or runs that are not in the tables, each
    with the reason; figures: names of files in folder/figures.
    """

    title: str
    results: Sequence[Result]
    conditions: Sequence[tuple[str, str]]
    missing: Sequence[tuple[str, str]]
    figures: Sequence[str]
    folder: Path
    simulated: bool = False

    @property
    def rates(self) -> list[tuple[str, list[Table]]]:
        """The rates in words, and their tables."""
        found = []
        for heading, group in at_rates(rows_of(self.results)):
            tables = [tabulated(*arguments) for arguments in tables_of(group)]
            found.append((heading, [table for table in tables if table is not None]))
        return found

    @property
    def notes(self) -> list[str]:
        """Without the marks of Markdown."""
        return [
            note.replace("*", "").strip() for note in notes(rows_of(self.results), self.missing)
        ]

    @property
    def plots(self) -> Iterator[Plot]:
        """The trade of rate and score first, pictures last."""
        order = ("rate_distortion", "psnr_", "reconstructions")
        for start in order:
            for name in sorted(name for name in self.figures if name.startswith(start)):
                address = data_uri((self.folder / "figures" / name).read_bytes())
                pictures = start == "reconstructions"
                yield Plot(address, _alt(name), not pictures, start != "psnr_")


def _alt(name: str) -> str:
    """What a figure shows, by its file's name."""
    stem = name.removesuffix(".png")
    kind, _, rate = stem.partition("-")
    at = f" at {rate} nats" if rate else ""
    if kind == "rate_distortion":
        return "PSNR and perceptual distances of every term against the rate that it spends"
    if kind == "reconstructions":
        return f"The same slices, original and reconstructed under every term{at}"
    return f"PSNR of every term against {kind.removeprefix('psnr_')}{at}"


def write_page(page: Page) -> str:
    """Write the page into its folder, atomically, and return its text.

    The figures that it shows must have been written before.
    """
    text = page_templates("pipeline.comparison").get_template(TEMPLATE).render(page=page)
    with atomic_file(page.folder / PAGE) as stream:
        stream.write(text.encode())
    return text
