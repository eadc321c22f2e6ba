"""What a run is going to do, and why: told before it is done."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_volumes import LAYOUT, brain, shard_of, write_cohort, write_nifti
from test_prepare_stage import configured

from data_prep.__main__ import main
from data_prep.store import Store

NAMES = [str(n) for n in range(401, 408)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_cohort(tmp_path / "raw", NAMES)
    for name in NAMES:
        write_nifti(root / name / "mask.nii.gz", (brain() > 0).astype(np.uint8))
    return root


@pytest.fixture
def arguments(root: Path, tmp_path: Path) -> list[str]:
    return configured(tmp_path, root, mask_template="{subject}/mask.nii.gz")


def listed(
    arguments: list[str], work: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> list[str]:
    """What a dry run says; it must change nothing."""
    before = {p: p.stat().st_mtime_ns for p in work.rglob("*")}
    capsys.readouterr()
    assert main([*arguments, *more, "--prepare.dry_run"]) == 0
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*")} == before
    told = capsys.readouterr()
    assert told.err == ""
    lines = told.out.splitlines()
    assert lines[-1].startswith("dry run: nothing was written")
    assert lines[0].startswith("no prepare.subjects_table")
    return lines[1:-1]


def test_at_first_everybody_is_new(
    arguments: list[str], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ", ".join(NAMES)
    assert listed(arguments, work, capsys) == [f"to prepare, new: 7 subjects: {names}"]


def test_each_change_is_listed_with_whom_it_concerns_and_a_run_does_just_that(
    arguments: list[str], root: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    store = work / "stores/study"
    assert listed(arguments, work, capsys) == [
        "kept as they are: 7 subjects",
        "nothing to prepare: at most families and splits change",
    ]
    write_nifti(root / LAYOUT.replace("{subject}", "402"), brain(seed=5))
    os.utime(root / "403" / "mask.nii.gz", (1, 1))
    shard_of(store, "404").unlink()
    shutil.rmtree(root / "405")
    write_cohort(root, ["409"])
    write_nifti(root / "409" / "mask.nii.gz", (brain() > 0).astype(np.uint8))
    expected = [
        "to prepare, its file changed: 1 subject: 402",
        "to prepare, its mask changed: 1 subject: 403",
        "to prepare, its shard is missing or cut: 1 subject: 404",
        "to prepare, new: 1 subject: 409",
        "to remove: 1 subject: 405",
        "kept as they are: 3 subjects",
    ]
    assert listed(arguments, work, capsys) == expected
    stamps = {p.name: p.stat().st_mtime_ns for p in (store / "slices").iterdir()}
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[1:][: len(expected)] == expected
    now = {p.name: p.stat().st_mtime_ns for p in (store / "slices").iterdir()}
    assert sorted(n[:3] for n in now if now[n] == stamps.get(n)) == ["401", "406", "407"]


def test_a_changed_key_is_named_with_both_its_values(
    arguments: list[str], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    lines = listed(arguments, work, capsys, "--prepare.size=64", "--prepare.plane=coronal")
    assert lines[0].startswith(
        "to prepare, prepare.plane is 'coronal' and was 'axial' and prepare.size is 64 and was 32: "
        "7 subjects: "
    )


def test_a_changed_arithmetic_is_named(
    arguments: list[str],
    work: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(arguments) == 0
    monkeypatch.setattr("data_prep.config.TRANSFORM_VERSION", 99)
    lines = listed(arguments, work, capsys)
    assert lines[0].startswith("to prepare, the program's arithmetic is 99 and was ")


def test_what_failed_for_a_passing_reason_is_tried_again(
    arguments: list[str], root: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "401" / "mask.nii.gz").unlink()
    assert main(arguments) == 3
    assert "kept as they are: 7 subjects" in listed(arguments, work, capsys)
    folder = work / "stores/study"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["quarantined"][0]["reason"] = "worker_died"
    del manifest["manifest_sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = listed(arguments, work, capsys)
    assert lines[0] == (
        "to prepare, it failed before (worker_died), which may have passed: 1 subject: 401"
    )


def test_moving_the_files_redoes_nothing(
    arguments: list[str], root: Path, work: Path, tmp_path: Path
) -> None:
    """A mount point is not a reason to work through a night again."""
    assert main(arguments) == 0
    stamps = {p.name: p.stat().st_mtime_ns for p in (work / "stores/study/slices").iterdir()}
    root.rename(tmp_path / "elsewhere")
    assert main([*arguments, f"--prepare.root={tmp_path / 'elsewhere'}"]) == 0
    now = {p.name: p.stat().st_mtime_ns for p in (work / "stores/study/slices").iterdir()}
    assert now == stamps
    store = Store.open(work / "stores/study")
    assert store.manifest["configuration"]["root"] == str(tmp_path / "elsewhere")


def test_a_dry_run_simulates_and_writes_nothing(
    tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--prepare.name=demo", "--prepare.cohort.people=3", "--prepare.dry_run=true"]) == 0
    assert "to prepare, new: 3 subjects: sim0001, sim0002, sim0003" in capsys.readouterr().out
    assert not work.exists()
