"""A comparison of two terms on a tiny store, shared by all tests of this file."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tiny import TINY

from pipeline import paired_differences
from pipeline.__main__ import main
from pipeline.evaluation.figures import calibration_of
from pipeline.files import locked

ROOT = Path(__file__).parents[2]
RUNS = ["tiny-gaussian-r20-s0", "tiny-blur-r20-s0"]
BLOCKED = "tiny-laplace-r20-s0"
CONFIG: dict[str, Any] = TINY | {
    "training": TINY["training"] | {"epochs": 2},
    "evaluation": {"samples": 4, "max_slices": 2},
    "compare": {"terms": ["gaussian", "blur"], "seeds": [0], "rate_targets": [20.0], "jobs": 2},
    "tracking": {"enabled": False},
}


@dataclass(frozen=True)
class Compared:
    work: Path
    config: Path
    said: str

    @property
    def folder(self) -> Path:
        return self.work / "comparisons/tiny"

    def file(self, name: str) -> str:
        return (self.folder / name).read_text()

    def again(self, *more: str, code: int = 0) -> str:
        """What the same command, with more options, says."""
        return _compare(self.work, self.config, *more, code=code)


def _words(config: Path, *more: str) -> list[str]:
    return ["compare", "--config", str(config), "--data.store", "tiny", "--run", "tiny", *more]


def _compare(work: Path, config: Path, *more: str, code: int = 0) -> str:
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        patch.setenv("WORK", str(work))
        patch.setenv("PYTHONPATH", str(ROOT))
        assert main(_words(config, *more)) == code, said.getvalue()
    return said.getvalue()


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, store_writer: Callable[..., Any]
) -> Compared:
    """Of three terms, one of which finds a file where its run's folder should be."""
    work = tmp_path_factory.mktemp("compare") / "work"
    splits = ("train", "train", "validation", "test", "test", "test")
    store_writer(work, splits=splits, families=["a", "b", "c", "d", "e", "e"])
    config = work / "tiny.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    (work / "runs").mkdir()
    (work / "runs" / BLOCKED).write_text("in the way")
    terms = "--compare.terms=[gaussian,laplace,blur]"
    return Compared(work, config, _compare(work, config, terms, code=2))


def test_a_run_that_fails_is_named_and_costs_the_others_nothing(compared: Compared) -> None:
    assert "1 of 3 runs failed" in compared.said
    table = compared.file("table.md")
    assert table in compared.said
    assert f"Not in the table: run {BLOCKED}: " in table
    assert list(pd.read_csv(compared.folder / "runs.csv")["run"]) == RUNS
    names = {path.name for path in (compared.folder / "figures").iterdir()}
    assert names == {"scores.png", "differences.png", "reconstructions.png", "calibration.png"}
    assert compared.file("report.html").count("data:image/png") == 4


def test_the_table_holds_the_runs_scores_and_their_paired_difference(compared: Compared) -> None:
    runs = pd.read_csv(compared.folder / "runs.csv").set_index("run")
    # The best checkpoint's, which has a law of residuals.
    assert runs["calibration_fitted_coverage_90"].notna().all()
    folders = [compared.work / "runs" / run / "evaluation" for run in RUNS]
    expected = paired_differences(folders[1], folders[0])
    written = pd.read_csv(compared.folder / "differences.csv").set_index("metric")
    assert set(written["term"] + written["reference"]) == {"blurgaussian"}
    pd.testing.assert_frame_equal(written[expected.columns], expected, check_dtype=False)
    assert (expected["families"] == 2).all()
    psnr = runs.loc[RUNS[1], "psnr"] - runs.loc[RUNS[0], "psnr"]
    assert expected.loc["psnr", "mean"] == pytest.approx(psnr)
    table = compared.file("table.md")
    assert "| blur − gaussian" in table and "only 2 families" in table.lower()
    assert "paired differences over 2 families" in table


def test_what_is_done_is_not_done_again_and_mlflow_nests_it(compared: Compared) -> None:
    from mlflow import MlflowClient

    states = sorted(compared.work.glob("runs/*/checkpoints/*/state.pt"))
    before = [path.stat().st_mtime_ns for path in states], compared.file("runs.csv")
    said = compared.again("--tracking.enabled", "true")
    assert "runs to do" not in said and "Not in the table" not in said
    assert ([path.stat().st_mtime_ns for path in states], compared.file("runs.csv")) == before
    client = MlflowClient(f"sqlite:///{compared.work}/mlflow.db")
    parent = client.get_run(compared.file("mlflow_run.txt").strip())
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert {run.data.tags["run"] for run in children} == set(RUNS)
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"report.html", "figures", "table.md", "runs.csv", "differences.csv"}


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--compare.rate_targets", "[]"], "compare.rate_targets"),
        (["--training.epochs", "4"], "training.epochs"),
        (["--data.store", "nowhere"], "nowhere"),
        (["--likelihood.warmup_epochs", "2"], "likelihood.warmup_epochs"),
        (["--run", ".."], "--run"),
        (["--compare.seeds", "[7]", "--evaluation.lpips_vgg_weights", "/no"], "lpips_vgg_weights"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(
    compared: Compared, words: list[str], key: str
) -> None:
    said = compared.again(*words, code=2).splitlines()
    assert len(said) == 1 and key in said[0]


def test_a_second_comparison_of_that_name_has_to_wait(compared: Compared) -> None:
    with locked(compared.folder / ".lock"):
        assert "another process" in compared.again(code=2)


def test_a_figure_of_calibration_is_of_folders_that_one_names(compared: Compared) -> None:
    folder = compared.work / "runs" / RUNS[0] / "evaluation"
    assert calibration_of({"a": folder, "b": folder}, "test of tiny") is not None
    assert calibration_of({"a": compared.work}, "no law") is None


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_leaves_nobody_behind(compared: Compared) -> None:
    environment = os.environ | {"WORK": str(compared.work), "PYTHONPATH": str(ROOT)}
    words = _words(compared.config, "--run", "killed", "--training.epochs", "60")
    process = subprocess.Popen([sys.executable, "-m", "pipeline", *words], env=environment)
    while not list(compared.work.glob("runs/killed-*/checkpoints/step-*/manifest.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = compared.again("--run", "killed", "--training.epochs", "60")
    assert "2 of 2 runs to do" in said
    logs = [path.read_text() for path in compared.work.glob("comparisons/killed/logs/*.log")]
    assert all("state saved" in log and "going on from step" in log for log in logs)
