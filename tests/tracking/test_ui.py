"""`pipeline ui`: what it refuses before a server starts, and where it leads."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.mlflow_connection import mlflow_client
from pipeline.__main__ import main
from pipeline.tracking import ui


@pytest.fixture
def database(work: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow's database with the experiment in it; returns the experiment's id."""
    _, experiment = mlflow_client("sharp-vae-mri", work)
    return experiment


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Notes what would be run, in place of running it."""
    calls: list[Any] = []

    def note(*what: Any, **_: Any) -> None:
        calls.append(what)

    monkeypatch.setattr(ui.subprocess, "Popen", note)
    monkeypatch.setattr(os, "execve", note)
    return calls


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_before_anything_was_tracked_it_says_what_to_do(
    work: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ui"]) == 2
    said = capsys.readouterr().err
    assert "mlflow.db" in said and "train" in said and said.count("\n") == 1
    assert not started and not work.exists()


def test_it_leads_to_the_experiment_in_the_view_of_training(
    database: str, started: list[Any], work: Path
) -> None:
    port = _free_port()
    assert main(["ui", "--port", str(port), "--browser", "never"]) == 0
    (opened,), (program, words, environment) = started
    page = f"#/experiments/{database}/runs?workflowType=machine_learning"
    assert opened[-3:] == [f"http://127.0.0.1:{port}/{page}", str(port), "say"]
    assert program == sys.executable and words[words.index("--port") + 1] == str(port)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{work.resolve()}/mlflow.db"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_port_in_use_is_refused(
    database: str, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"port {port}" in said and "PORT=" in said and not started


def test_a_file_that_is_no_database_is_one_line(
    work: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    work.mkdir()
    (work / "mlflow.db").write_bytes(b"no database " * 1000)
    assert main(["ui", "--port", str(_free_port())]) == 2
    said = capsys.readouterr().err
    assert "mlflow.db" in said and said.count("\n") == 1 and not started


def test_the_browser_opens_once_the_server_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: list[bool] = [False, False, True]
    opened: list[str] = []
    monkeypatch.setattr(ui, "answers", lambda port: answers.pop(0))
    monkeypatch.setattr(ui.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(ui.webbrowser, "open", opened.append)
    ui.wait("http://127.0.0.1:1/#/here", 1, show=True)
    assert not answers and opened == ["http://127.0.0.1:1/#/here"]
    assert "http://127.0.0.1:1/#/here" in capsys.readouterr().out


def test_it_does_not_wait_for_a_server_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([10, 10, 1])
    monkeypatch.setattr(ui.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(ui, "answers", lambda port: False)
    monkeypatch.setattr(ui.time, "sleep", lambda seconds: None)
    refuse: Callable[[str], None] = pytest.fail
    monkeypatch.setattr(ui.webbrowser, "open", refuse)
    ui.wait("address", 1, show=True)
