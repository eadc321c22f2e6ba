"""Nobody is in two splits, whatever the table, the seed and the order; and nobody moves."""

import csv
import io
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_volumes import LAYOUT, write_cohort
from test_prepare_stage import configured

from data_prep.__main__ import main
from data_prep.config import PrepareConfig, SplitConfig
from data_prep.sources.path_template import discover
from data_prep.store import Store

# Families as people write them: codes, names, blanks (then everyone is a family of their own).
FAMILIES = st.sampled_from(["", "a", "b", "52259_82122", "família", " a", "A", "0"])
TABLES = st.lists(FAMILIES, min_size=2, max_size=12)
SHARES = st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.5, 0.0), (0.2, 0.4, 0.4), (0.34, 0.33, 0.33)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all examples; who is in it is said by each."""
    return tmp_path_factory.mktemp("study")


def placed(
    folder: Path, people: dict[str, str], shares: tuple[float, float, float], salt: str, order: int
) -> dict[str, tuple[str, str]]:
    """(family, split) of everybody, the table's rows shuffled."""
    for name in people:
        path = folder / LAYOUT.replace("{subject}", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for path in folder.glob(LAYOUT.replace("{subject}", "*")):
        if path.parents[1].name not in people:
            path.unlink()
    rows = list(people.items())
    random.Random(order).shuffle(rows)
    text = io.StringIO()
    csv.writer(text).writerows([("Subject", "Family_ID"), *rows])
    (folder / "subjects.csv").write_text(text.getvalue())
    config = PrepareConfig(
        name="study",
        source="hcp",
        root=str(folder),
        subjects_table="subjects.csv",
        split=SplitConfig(*shares, salt),
    )
    found = [
        item.assignment(config) | {"subject": item.subject} for item in discover(config).subjects
    ]
    assert [f["subject"] for f in found] == sorted(people)
    return {f["subject"]: (f["family"], f["split"]) for f in found}


@given(TABLES, SHARES, st.text(max_size=3), st.integers(0, 99), st.integers(0, 11))
@settings(max_examples=60)
def test_no_family_is_in_two_splits_and_adding_people_moves_nobody(
    folder: Path,
    families: list[str],
    shares: tuple[float, float, float],
    salt: str,
    order: int,
    absent: int,
) -> None:
    people = {f"p{n:02}": family for n, family in enumerate(families)}
    everybody = placed(folder, people, shares, salt, order)
    splits: dict[str, set[str]] = {}
    for name, (family, split) in everybody.items():
        assert family == (people[name].strip() or name)
        splits.setdefault(family, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    fewer = dict(people)
    del fewer[f"p{absent % len(people):02}"]
    before = placed(folder, fewer, shares, salt, order + 1)
    assert before == {name: everybody[name] for name in fewer}


@given(st.integers(0, 10**6))
@settings(max_examples=8)
def test_slices_of_one_scan_never_part(seed: int) -> None:
    """Whatever the salt: one scan is one shard, which is in one split."""
    folder = COHORT.parent
    arguments = [*configured(folder, COHORT), f"--prepare.split.salt={seed}"]
    assert main(arguments) == 0
    store = Store.open(WORK / "stores/study")
    found = [e.subject for s in ("train", "validation", "test") for e in store.subjects(s)]
    assert sorted(found) == sorted(set(found)) == ["1", "2", "3", "4"]
    for entry in store.entries:
        assert len(store.slices(entry)) == len(entry.slice_indices) > 1


COHORT = WORK = Path()


@pytest.fixture(autouse=True)
def cohort(tmp_path: Path, work: Path) -> None:
    global COHORT, WORK
    COHORT, WORK = write_cohort(tmp_path / "raw", ["1", "2", "3", "4"]), work


def test_two_scans_of_one_person_stay_together(oasis: Path, work: Path, tmp_path: Path) -> None:
    """1023 and 1024 are second scans of 1003 and 1004: under every salt beside the first."""
    for salt in range(40):
        config = PrepareConfig(
            name="oasis",
            source="hcp",
            root=str(oasis),
            subjects_table="subjects.csv",
            split=SplitConfig(salt=str(salt)),
        )
        splits = {i.subject: i.assignment(config)["split"] for i in discover(config).subjects}
        assert splits["1003"] == splits["1023"]
        assert splits["1004"] == splits["1024"]
