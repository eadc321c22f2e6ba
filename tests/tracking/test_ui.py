"""`pipeline ui`: what it refuses before a server starts, and where it leads."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.tracking import mlflow_client
from pipeline.__main__ import main
from pipeline.tracking import ui


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Notes what would be run, in place of running it."""
    calls: list[Any] = []
    monkeypatch.setattr(ui.subprocess, "Popen", lambda words: calls.append(words))
    monkeypatch.setattr(os, "execve", lambda *words: calls.append(words))
    return calls


def test_it_leads_to_the_experiment_in_the_view_of_training(
    started: list[Any], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, experiment = mlflow_client("sharp-vae-mri", work)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"port {port}" in said and "PORT=" in said and not started
    assert main(["ui", "--port", str(port), "--browser", "never"]) == 0
    opened, (program, words, environment) = started
    page = f"#/experiments/{experiment}/runs?workflowType=machine_learning"
    assert opened[-3:] == [f"http://127.0.0.1:{port}/{page}", str(port), "say"]
    assert program == sys.executable and words[words.index("--port") + 1] == str(port)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{work.resolve()}/mlflow.db"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_file_that_is_no_database_is_one_line(
    work: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    work.mkdir()
    (work / "mlflow.db").write_bytes(b"no database " * 1000)
    assert main(["ui", "--port", "5999"]) == 2
    said = capsys.readouterr().err
    assert "mlflow.db" in said and said.count("\n") == 1 and not started


@pytest.mark.parametrize(
    ("parents", "answers", "opened"),
    [
        ([10, 10, 10, 10], [False, False, True], ["address/#/here"]),
        ([10, 10, 1], [False, False], []),
    ],
    ids=["once the server answers", "not after it has ended"],
)
def test_the_browser_opens(
    monkeypatch: pytest.MonkeyPatch, parents: list[int], answers: list[bool], opened: list[str]
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(ui.os, "getppid", lambda: parents.pop(0))
    monkeypatch.setattr(ui, "answers", lambda port: answers.pop(0))
    monkeypatch.setattr(ui.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(ui.webbrowser, "open", shown.append)
    ui.wait("address/#/here", 1, show=True)
    assert shown == opened
