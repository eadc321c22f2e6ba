"""Families of a table; and nobody who has a split moves."""

import csv
import io
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_volumes import LAYOUT, write_cohort
from test_prepare_stage import configured

from data_prep.__main__ import main
from data_prep.config import PrepareConfig
from data_prep.sources import volumes
from data_prep.sources.path_template import discover
from data_prep.store import Store

# Families as people write them: codes, names, blanks (then everyone is a family of their own).
FAMILIES = st.sampled_from(["", "a", "b", "52259_82122", "família", " a", "A", "0"])
TABLES = st.lists(FAMILIES, min_size=2, max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all examples; who is in it is said by each."""
    return tmp_path_factory.mktemp("study")


@given(TABLES, st.integers(0, 99))
@settings(max_examples=40)
def test_families_are_the_table_s_whatever_its_order(
    folder: Path, families: list[str], order: int
) -> None:
    people = {f"p{n:02}": family for n, family in enumerate(families)}
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
        name="study", source="hcp", root=str(folder), subjects_table="subjects.csv"
    )
    subjects = discover(config)[0]
    assert [item.subject for item in subjects] == sorted(people)
    assert {i.subject: i.family for i in subjects} == {
        name: family.strip() or name for name, family in people.items()
    }


def test_two_scans_of_one_person_are_one_family(oasis: Path) -> None:
    """1023 and 1024 are second scans of 1003 and 1004."""
    config = PrepareConfig(name="o", source="hcp", root=str(oasis), subjects_table="subjects.csv")
    families = {item.subject: item.family for item in discover(config)[0]}
    assert families["1003"] == families["1023"] != families["1004"] == families["1024"]


def splits(work: Path) -> dict[str, str]:
    return {entry.subject: entry.split for entry in Store.open(work / "stores/study").entries}


def test_a_store_keeps_its_split_through_additions_removals_and_a_killed_run(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever rule drew it: here one that put nearly all into test."""
    root = write_cohort(tmp_path / "more", [str(n) for n in range(1, 7)])
    arguments = configured(tmp_path, root)
    assert main(arguments) == 0
    fresh, old = splits(work), dict.fromkeys(map(str, range(1, 7)), "test") | {"3": "train"}
    path = work / "stores/study/manifest.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["subjects"]:
        entry["split"] = old[entry["subject"]]
    del manifest["manifest_sha256"]
    path.write_text(json.dumps(manifest))
    # Stopped while everything is made anew, with a subject that the store did not have.
    write_cohort(root, ["7"])
    done = iter(range(3))
    write = volumes.write_shard

    def stopped(*args: object) -> object:
        if next(done, None) is None:
            raise KeyboardInterrupt
        return write(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(volumes, "write_shard", stopped)
        assert main([*arguments, "--prepare.plane=coronal"]) == 130
    assert main([*arguments, "--prepare.plane=coronal"]) == 0
    assert splits(work) == old | {"7": "validation"}
    for name in ("1", "3"):
        (root / LAYOUT.replace("{subject}", name)).unlink()
    assert main([*arguments, "--prepare.plane=coronal"]) == 0
    assert splits(work) == {
        n: s for n, s in (old | {"7": "validation"}).items() if n not in ("1", "3")
    }
    assert "none, where prepare.split asks for 70%: subjects keep" in capsys.readouterr().out
    # Another share, salt or fold draws anew.
    times = {p: p.stat().st_mtime_ns for p in path.parent.glob("slices/*")}
    assert main([*arguments, "--prepare.plane=coronal", "--prepare.split.fold=1/5"]) == 0
    assert list(splits(work).values()).count("test") == 1
    assert {p: p.stat().st_mtime_ns for p in path.parent.glob("slices/*")} == times
    assert sorted(fresh.values()).count("test") == 1
