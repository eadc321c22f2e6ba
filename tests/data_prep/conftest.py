"""A small cohort, prepared once a run: each test that asks for it has a copy of its own."""

import shutil
from pathlib import Path

import pytest
from small_volumes import write_cohort
from studies import NAMES, Study

from data_prep.__main__ import main


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort and its store, work/stores/study, in one folder."""
    folder = tmp_path_factory.mktemp("prepared")
    write_cohort(folder / "raw", NAMES)
    (folder / "study.yaml").write_text(
        "prepare: {source: hcp, root: raw, size: 32, spacing_mm: 1.0, workers: 1, track: false,"
        " plausibility: {action: ignore}}"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORK", "work")
        patch.chdir(folder)
        assert main(["--config", "study.yaml"]) == 0
    return folder


@pytest.fixture
def study(
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Study:
    """Six subjects and their finished store."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return _at(tmp_path, monkeypatch, capsys)


@pytest.fixture
def raw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Study:
    """An empty folder, and no store."""
    (tmp_path / "raw").mkdir()
    return _at(tmp_path, monkeypatch, capsys)


def _at(folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Study:
    patch.chdir(folder)
    return Study(Path("raw"), folder / "work/stores/study", capsys)
