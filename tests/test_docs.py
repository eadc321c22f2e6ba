"""README and docs/: links lead somewhere, what they name exists, and what there is is described."""

import doctest
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.cli import COMMANDS
from pipeline.config import Config
from pipeline.models.config import Level

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# Pages that report what was measured.
MEASURED = ["results", "calibration", "speed", "reconstruction", "anomaly-maps"]
# Written from docstrings, whose examples test_face runs.
GENERATED = {"keys.md", "api.md"}
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
    """Anchors of a page's headings, as GitHub makes them: 128² is 128 there."""
    headings = re.findall(r"^#+ (.*)$", _text(page), re.M)
    return {
        "".join(c for c in heading.lower() if c.isalpha() or c.isdecimal() or c in "_- ").replace(
            " ", "-"
        )
        for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    for link in _links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), f"{page.name}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page.name}: {link}"


def test_the_front_page_is_short_and_leads_to_every_page() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 240
    linked = {(README.parent / link.partition("#")[0]).resolve() for link in _links(README)}
    assert {page.resolve() for page in PAGES} - {README.resolve()} <= linked


def test_every_configuration_file_is_named() -> None:
    text = CONFIGURATION.read_text(encoding="utf-8")
    files = [path.name for path in sorted((ROOT / "configs").glob("*.yaml"))]
    assert files and not [name for name in files if f"`{name}`" not in text]
    named = re.findall(r"`(\w+\.yaml)`", text)
    assert not set(named) - set(files)


def _keys(section: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a configuration, those of its sections as `section.*`, too."""
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield f"{prefix}{field.name}.*"
            yield from _keys(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


@pytest.fixture(scope="module")
def reference(docs_program: Callable[[str], ModuleType]) -> ModuleType:
    return docs_program("reference")


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_the_written_pages_are_as_the_code_has_them(name: str, reference: ModuleType) -> None:
    """`make docs-reference` writes them anew."""
    assert reference.PAGES.keys() == GENERATED
    page = reference.PAGES[name]()
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page
    assert not re.search(r"^\| `\w+`°? \| `[^`]*` \|  \|", page, re.M)  # a key without a word


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
    reasons = re.findall(
        r'(?:VolumeError\(\s*|reason=|errno\.\w+: \(|reason, words = )"(\w+)"', "".join(sources)
    )
    section = _text(ROOT / "docs/troubleshooting.md").partition("## Quarantined subjects")[2]
    rows = re.findall(r"^\| (`.*?) \|", section.partition("\n## ")[0], re.M)
    assert reasons and set(reasons) == set(re.findall(r"`(\w+)`", "".join(rows)))


def test_every_key_of_a_level_is_explained_in_the_method() -> None:
    method = _text(ROOT / "docs/method.md")
    for field in fields(Level):
        assert re.search(rf"^\| `{field.name}` \|", method, re.M)


def test_scores_of_the_front_page_are_those_of_the_results() -> None:
    rows = re.findall(r"^\| (?:blur|Gaussian), .*$", _text(README), re.M)
    results = _text(ROOT / "docs/results.md")
    cells = [cell for row in rows for cell in re.findall(r"[\d.−]+ ± [\d.]+", row)]
    assert len(rows) == 4 and len(cells) == 24
    assert not [cell for cell in cells if cell not in results]


@pytest.mark.parametrize("name", MEASURED)
def test_what_was_measured_says_when_and_with_which_commit(name: str) -> None:
    text = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    assert re.search(r"^\*Measured \d{4}-\d\d-\d\d, commit [0-9a-f]{7}[,;. ]", text, re.M)


def test_the_site_has_every_page() -> None:
    site = tomllib.loads((ROOT / "docs/zensical.toml").read_text(encoding="utf-8"))["project"]

    def pages(items: list[dict[str, Any]]) -> Iterator[str]:
        for item in items:
            for value in item.values():
                yield from pages(value) if isinstance(value, list) else [value]

    listed = list(pages(site["nav"]))
    results = sorted((ROOT / "benchmarks/results").glob("*.md"))
    expected = {str(page.relative_to(ROOT)) for page in [*PAGES, *results]}
    assert set(listed) == expected and len(listed) == len(expected)


def test_files_that_pages_link_to_are_laid_out_for_the_site(
    tmp_path: Path, docs_program: Callable[[str], ModuleType]
) -> None:
    docs_program("site_source").lay_out(tmp_path)
    for page in PAGES:
        copy = tmp_path / "pages" / page.relative_to(ROOT)
        for link in _links(page):
            assert (copy.parent / (link.partition("#")[0] or copy.name)).is_file(), link


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# What packages that give no SPDX expression call their licence.
LICENCES = {
    "Apache-2.0": r"Apache",
    "BSD-2-Clause": r"BSD",
    "BSD-3-Clause": r"BSD",
    "LicenseRef-Matplotlib": r"Python Software Foundation|matplotlib",
    "MIT": r"MIT",
}


def _licences() -> dict[str, str]:
    """Package -> licence, as docs/dependencies.md has them."""
    text = _text(ROOT / "docs/dependencies.md")
    return dict(re.findall(r"^\| (?!package)([A-Za-z][\w-]+) \| ([^|]+?) \|", text, re.M))


def test_every_direct_dependency_is_listed() -> None:
    project = _project()
    extras = project["optional-dependencies"].values()
    needs = [*project["dependencies"], *(need for extra in extras for need in extra)]
    named = {re.split(r"[^A-Za-z0-9-]", need)[0].lower() for need in needs}
    listed = {name.lower() for name in _licences()}
    assert listed == named


def test_licences_are_those_that_packages_give() -> None:
    compared = 0
    for name, licence in _licences().items():
        try:
            told = metadata.metadata(name)
        except metadata.PackageNotFoundError:  # of an extra that is not installed here
            continue
        compared += 1
        if expression := told.get("License-Expression"):
            assert licence == expression, name
        else:
            words = [told.get("License") or "", *(told.get_all("Classifier") or [])]
            own = [word for word in words if not word.startswith("Topic")]
            assert re.search(LICENCES[licence], " ".join(own)), name
    assert compared > 25


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if ">>>" in p.read_text() and p.name not in GENERATED],
    ids=lambda p: p.name,
)
def test_what_a_page_types_into_python_gives_what_it_shows(page: Path) -> None:
    found = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert found.attempted and not found.failed
