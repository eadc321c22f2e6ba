"""README and docs/: links lead somewhere, what they name exists, and what there is is described."""

import doctest
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import COMMANDS
from pipeline.config import Config
from pipeline.models.config import Level

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGURATION = ROOT / "docs/configuration.md"
SECTIONS = "|".join(section.name for section in fields(Config))


def _text(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"^ {4}.*$", "", text, flags=re.M)


def _links(page: Path) -> list[str]:
    """Targets of a page's links and images within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _text(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _text(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    for link in _links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), f"{page.name}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page.name}: {link}"


def test_the_front_page_is_short_and_leads_to_every_page() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 220
    linked = {(README.parent / link.partition("#")[0]).resolve() for link in _links(README)}
    assert {page.resolve() for page in PAGES} - {README.resolve()} <= linked


def test_every_configuration_file_is_named() -> None:
    text = CONFIGURATION.read_text(encoding="utf-8")
    files = [path.name for path in sorted((ROOT / "configs").glob("*.yaml"))]
    assert files and not [name for name in files if f"`{name}`" not in text]
    named = re.findall(r"`(\w+\.yaml)`", text)
    assert not set(named) - set(files)


def _described_keys() -> set[str]:
    """Keys in the table of docs/configuration.md: `section.key`, then keys of the same section."""
    found: set[str] = set()
    for cell in re.findall(r"^\| (`\w+\..*?) \|", _text(CONFIGURATION), re.M):
        section = ""
        for name in re.findall(r"`([\w.*]+)`", cell):
            section = name.rpartition(".")[0] or section
            found.add(f"{section}.{name.rpartition('.')[2]}")
    # The other tables of the page name files.
    return {key for key in found if not key.endswith(".yaml")}


def _keys(section: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a configuration, those of its sections as `section.*`, too."""
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield f"{prefix}{field.name}.*"
            yield from _keys(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_every_key_that_is_described_exists() -> None:
    assert not _described_keys() - set(_keys(Config()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_and_command_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?:`|--)((?:{SECTIONS})(?:\.\w+)+)", text)
    known = {key.removesuffix(".*") for key in _keys(Config())}
    assert not {key for key in named if not key.endswith((".safetensors", ".pt2"))} - known
    assert not set(re.findall(r"python -m pipeline ([a-z]+)", text)) - set(COMMANDS)
    targets = re.findall(r"(?:^ {4}|`)make ([a-z][a-z -]*)", text, re.M)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert not {word for words in targets for word in words.split()} - set(
        re.findall(r"^([a-z-]+):", makefile, re.M)
    )
    for name in re.findall(r"configs/\w+\.yaml", text):
        assert (ROOT / name).is_file(), name


def test_every_reason_for_quarantine_is_explained() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "data_prep").rglob("*.py")]
    reasons = re.findall(r'(?:VolumeError\(\s*|reason=)"(\w+)"', "".join(sources))
    section = _text(ROOT / "docs/troubleshooting.md").partition("## Quarantined subjects")[2]
    rows = re.findall(r"^\| (`.*?) \|", section.partition("\n## ")[0], re.M)
    assert reasons and set(reasons) == set(re.findall(r"`(\w+)`", "".join(rows)))


def test_the_glossary_is_sorted_and_an_entry_has_two_lines_at_most() -> None:
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    entries = [entry.strip().splitlines() for entry in text.split("\n## ")[1:]]
    names = [entry[0].lower() for entry in entries]
    assert names == sorted(names)
    assert not [entry[0] for entry in entries if len(entry) > 3]


@pytest.mark.parametrize("section", ["model", "prior"])
def test_every_key_of_the_model_and_of_the_prior_is_described(section: str) -> None:
    assert {key for key in _keys(Config()) if re.match(rf"{section}\.\w", key)} <= _described_keys()


def test_every_key_of_a_level_is_described() -> None:
    (row,) = re.findall(r"^\| `model\.levels` .*$", _text(CONFIGURATION), re.M)
    method = _text(ROOT / "docs/method.md")
    for field in fields(Level):
        assert f"`{field.name}`" in row
        assert re.search(rf"^\| `{field.name}` \|", method, re.M)


@pytest.mark.parametrize("page", [p for p in PAGES if ">>>" in p.read_text()], ids=lambda p: p.name)
def test_what_a_page_types_into_python_gives_what_it_shows(page: Path) -> None:
    found = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert found.attempted and not found.failed
