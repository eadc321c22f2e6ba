"""A comparison end to end, in processes of its own, on a tiny store."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep import NOTE
from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.files import locked
from pipeline.training.checkpoint import find_checkpoint

ROOT = Path(__file__).parents[2]
FILES = """
figures/psnr_kid_vgg16.png
figures/psnr_lpips_alex.png
figures/psnr_lpips_vgg.png
figures/rate_distortion.png
figures/reconstructions.png
leaderboard.csv
leaderboard.md
locks/tiny-blur-r20-s0
locks/tiny-blur-r20-s1
locks/tiny-gaussian-r20-s0
locks/tiny-gaussian-r20-s1
logs/tiny-blur-r20-s0.log
logs/tiny-blur-r20-s1.log
logs/tiny-gaussian-r20-s0.log
logs/tiny-gaussian-r20-s1.log
mlflow_run.txt
report.html
runs.csv
"""
EPOCHS = 3
# Of two processes that compute the same.
ROUNDING = 1e-5
CONFIG: dict[str, Any] = {
    "prepare": {"size": 32},
    "model": {
        "levels": [{"side": 4, "channels": 2}, {"side": 8, "channels": 1, "opens": 0.2}],
        "width": 4, "max_width": 8, "residual_blocks": 0, "kernel_hidden": 8,
    },
    "likelihood": {"kernel_size": 5, "warmup_epochs": 1, "residual_steps": 2},
    "training": {
        "epochs": EPOCHS, "batch_size": 6, "lr_warmup_steps": 2, "rate_warmup_steps": 2,
        "device": "cpu",
    },
    "prior": {"images": 40},
    "evaluation": {"samples": 8},
    "compare": {
        "terms": ["gaussian", "blur"], "seeds": [0, 1], "rate_targets": [20.0], "jobs": 2,
    },
}  # fmt: skip


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


def _words(config: Path, *more: str) -> list[str]:
    return ["compare", "--config", str(config), "--data.store", "tiny", "--run", "tiny", *more]


def _start(work: Path, config: Path, *more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"WORK": str(work), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *_words(config, *more)], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _compare(work: Path, config: Path, *more: str, code: int = 0) -> str:
    """In this process: it has done the imports, and the next one's runs are forked at once."""
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        patch.setenv("WORK", str(work))
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main(_words(config, *more)) == code, said.getvalue()
    return said.getvalue()


def _prepared(folder: Path, store_writer: Callable[..., Store], **training: int) -> Path:
    """A work folder with a tiny store; returns the configuration's path."""
    work = folder.resolve() / "work"
    store_writer(work)
    config = work / "tiny.yaml"
    config.write_text(yaml.safe_dump(CONFIG | {"training": CONFIG["training"] | training}))
    return config


def _tracked(work: Path, run: str, key: str) -> list[float]:
    """What MLflow holds of a run's metric, epoch after epoch."""
    with contextlib.closing(sqlite3.connect(work / "mlflow.db")) as database:
        question = (
            "select value from metrics where key = ? and run_uuid in (select run_uuid from tags "
            "where key = 'run' and value = ?) order by step"
        )
        return [value for (value,) in database.execute(question, (key, run))]


def _assert_alike(left: str, right: str) -> None:
    """The same text but for its numbers, which are near: two processes may round differently."""
    number = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
    assert number.split(left) == number.split(right)
    values = [[float(word) for word in number.findall(text)] for text in (left, right)]
    assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-3)


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, store_writer: Callable[..., Store]
) -> Compared:
    config = _prepared(tmp_path_factory.mktemp("compare"), store_writer)
    return Compared(config.parent, config, _compare(config.parent, config))


def test_it_leaves_these_files(compared: Compared) -> None:
    """But for what LPIPS weights decide."""
    found = {str(p.relative_to(compared.folder)) for p in compared.folder.rglob("*")
             if p.is_file() and p.name != ".lock"}  # fmt: skip
    expected = set(FILES.split())
    if "lpips_alex" not in compared.file("leaderboard.csv"):
        expected = {name for name in expected if "psnr_" not in name}
    assert found == expected


def test_every_run_is_in_the_tables(compared: Compared) -> None:
    runs = list(csv.DictReader((compared.folder / "runs.csv").open()))
    assert {(run["term"], run["seed"]) for run in runs} == {
        (term, seed) for term in ("gaussian", "blur") for seed in "01"
    }
    page = compared.file("leaderboard.md")
    assert "| gaussian" in page
    assert "| blur" in page
    assert page in compared.said
    assert "4 of 4 runs to do, 2 at once" in compared.said


def test_terms_of_a_seed_see_the_same_beginning(compared: Compared) -> None:
    """Until the warm-up ends nothing tells them apart: same weights, order, noise, rates.

    Within 1e-5: each run is a process of its own, which may round differently.
    """
    for key in ("rate", "distortion"):
        blur, gaussian = (
            _tracked(compared.work, f"tiny-{term}-r20-s0", f"train/{key}")
            for term in ("blur", "gaussian")
        )
        assert len(blur) == len(gaussian) == EPOCHS
        assert blur[0] == pytest.approx(gaussian[0], rel=ROUNDING)
        if key == "distortion":
            assert all(
                one != pytest.approx(two, rel=1e-2)
                for one, two in zip(blur[1:], gaussian[1:], strict=True)
            )


def test_the_weight_waits_for_the_level_that_opens_in_the_first_epoch(compared: Compared) -> None:
    for term in ("gaussian", "blur"):
        folder = compared.work / f"runs/tiny-{term}-r20-s0/checkpoints"
        controller = find_checkpoint(folder, "last").state.controller
        rates = _tracked(compared.work, f"tiny-{term}-r20-s0", "train/rate")
        assert controller["rates"] == pytest.approx(rates[1:], rel=ROUNDING)


def test_mlflow_has_one_parent_with_the_runs_as_children(compared: Compared) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{compared.work}/mlflow.db")
    parent = client.get_run(compared.file("mlflow_run.txt").strip())
    assert parent.info.status == "FINISHED"
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert parent.info.run_name == "tiny, 2 terms compared"
    assert parent.data.tags["stage"] == "comparison"
    assert compared.file("leaderboard.md").splitlines()[0] in parent.data.tags[NOTE]
    assert {child.info.run_name for child in children} == {
        f"tiny, {term}, seed {seed} (tiny-{term}-r20-s{seed})"
        for term in ("gaussian", "blur")
        for seed in "01"
    }
    runs = list(csv.DictReader((compared.folder / "runs.csv").open()))
    for child in children:
        assert child.info.status == "FINISHED"
        tags = child.data.tags
        row = next(r for r in runs if (r["term"], r["seed"]) == (tags["term"], tags["seed"]))
        assert child.data.metrics["test/psnr"] == pytest.approx(float(row["psnr"]))
        assert child.data.metrics["train/final_beta"] == pytest.approx(float(row["beta"]))
        assert child.data.tags["compare.rate_settled"] == row["rate_settled"].lower()
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    tables = {"leaderboard.md", "leaderboard.csv", "runs.csv"}
    assert {"report.html", "figures", *tables} <= artifacts


def test_what_is_done_is_not_done_again(
    compared: Compared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: compared.file(name) for name in ("leaderboard.md", "runs.csv")}
    states = sorted(compared.work.glob("runs/*/checkpoints/*/state.pt"))
    times = [path.stat().st_mtime_ns for path in states]
    monkeypatch.setenv("WORK", str(compared.work))
    assert main(_words(compared.config)) == 0
    assert "runs to do" not in capsys.readouterr().out
    for name, text in before.items():
        _assert_alike(compared.file(name), text)
    assert [path.stat().st_mtime_ns for path in states] == times


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--compare.terms", "[gaussian,l3]"], "l3"),
        (["--compare.rate_targets", "[]"], "compare.rate_targets"),
        (["--training.epochs", "4"], "training.epochs"),
        (["--data.store", "nowhere"], "nowhere"),
        (["--compare.term", "[gaussian]"], "compare.term"),
        (["--likelihood.warmup_epochs", "3"], "likelihood.warmup_epochs"),
        (["--run", ".."], "--run"),
        (["--evaluation.store", "nowhere"], "nowhere"),
        (["--compare.seeds", "[7]", "--evaluation.lpips_vgg_weights", "/no"], "lpips_vgg_weights"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    compared: Compared,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    """Another configuration under the same names, too: nothing is trained before it is said."""
    monkeypatch.setenv("WORK", str(compared.work))
    assert main(_words(compared.config, *words)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert expected in said[0]


def test_what_could_not_be_scored_for_want_of_weights_is_done_all_the_same(
    compared: Compared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it would be scored again, in vain, with every command."""
    monkeypatch.setenv("WORK", str(compared.work))
    whole = {}
    for path in compared.work.glob("runs/tiny-*/evaluation/metrics.json"):
        whole[path] = path.read_text()
        poor = {k: v for k, v in json.loads(whole[path]).items() if "lpips" not in k}
        path.write_text(json.dumps(poor))
    try:
        assert main(_words(compared.config)) == 0
        assert "runs to do" not in capsys.readouterr().out
        assert "LPIPS" not in compared.file("leaderboard.md").split("‡")[0]
    finally:
        for path, text in whole.items():
            path.write_text(text)
        assert main(_words(compared.config)) == 0


def test_a_second_comparison_of_that_name_has_to_wait(
    compared: Compared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORK", str(compared.work))
    with locked(compared.folder / ".lock"):
        assert main(_words(compared.config)) == 2
    assert "another process" in capsys.readouterr().err


def test_a_run_that_fails_is_named_and_costs_the_others_nothing(compared: Compared) -> None:
    """Seed 2 of the blur term finds a file where its folder should be."""
    blocked = compared.work / "runs/tiny-blur-r20-s2"
    blocked.write_text("in the way")
    try:
        said = _compare(compared.work, compared.config, "--compare.seeds=[0,2]", code=2)
    finally:
        blocked.unlink()
    assert "1 of 4 runs failed" in said
    page = compared.file("leaderboard.md")
    assert "Not in the table: run tiny-blur-r20-s2" in page
    assert "| gaussian" in page
    # The next one is whole again.
    _compare(compared.work, compared.config)
    assert "Not in the table" not in compared.file("leaderboard.md")


@pytest.mark.slow
def test_a_killed_comparison_goes_on_to_the_same_leaderboard(
    tmp_path: Path, store_writer: Callable[..., Store]
) -> None:
    """SIGKILL while runs are at work, three times; nobody is left behind."""
    whole, killed = (
        _prepared(tmp_path / name, store_writer, epochs=40) for name in ("whole", "killed")
    )
    _compare(whole.parent, whole)
    for kills in range(3):
        process = _start(killed.parent, killed)
        checkpoints = killed.parent.glob
        known = set(checkpoints("runs/*/checkpoints/step-*"))
        end = time.monotonic() + 200
        while not set(checkpoints("runs/*/checkpoints/step-*/manifest.json")) - known:
            assert process.poll() is None, f"it ended before kill {kills}"
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.4 * kills)
        process.send_signal(signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 60
        while _workers_of(killed.parent):
            assert time.monotonic() < end, "a process outlived its comparison"
            time.sleep(0.2)
    _compare(killed.parent, killed)
    for name in ("leaderboard.md", "leaderboard.csv", "runs.csv"):
        one, two = ((w.parent / "comparisons/tiny" / name).read_text() for w in (whole, killed))
        _assert_alike(one, two)


def _workers_of(work: Path) -> list[int]:
    """Processes whose WORK it is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"WORK={work}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
