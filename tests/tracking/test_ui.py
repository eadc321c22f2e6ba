"""`pipeline ui`: what it refuses before a server starts, and where it leads."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.common.tracking import mlflow_client
from pipeline.__main__ import main
from pipeline.tracking import ui


class Server:
    """Stands for MLflow's server; `polled` are the answers to whether it has ended."""

    started: list[tuple[list[str], dict[str, str]]]
    polled: list[int | None]

    def __init__(self, words: list[str], env: dict[str, str]) -> None:
        self.started.append((words, env))

    def poll(self) -> int | None:
        return self.polled.pop(0)

    def wait(self) -> None:
        assert not self.polled

    terminate = wait


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[Server]:
    Server.started, Server.polled = [], [None, None, None]
    monkeypatch.setattr(ui, "subprocess", SimpleNamespace(Popen=Server))  # MLflow has its own
    return Server


def test_it_leads_to_the_experiment_in_the_view_of_training(
    server: type[Server],
    work: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, experiment = mlflow_client("sharp-vae-mri", work)
    shown: list[str] = []
    monkeypatch.setattr(ui.webbrowser, "open", shown.append)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"port {port}" in said and "PORT=" in said and not server.started
    answers = [False, True]
    monkeypatch.setattr(ui, "answers", lambda port: answers.pop(0))
    assert main(["ui", "--port", str(port), "--browser", "always"]) == 0
    page = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    assert shown == [page] and f"open {page} in" in capsys.readouterr().out
    ((words, environment),) = server.started
    assert words[0] == sys.executable and words[words.index("--port") + 1] == str(port)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{work.resolve()}/mlflow.db"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"

    server.polled += [None, 1, 1]  # it ends before it answers
    answers += [False]
    assert main(["ui", "--port", str(port), "--browser", "always"]) == 0 and shown == [page]


def test_a_file_that_is_no_database_is_one_line(
    work: Path, server: type[Server], capsys: pytest.CaptureFixture[str]
) -> None:
    work.mkdir()
    (work / "mlflow.db").write_bytes(b"no database " * 1000)
    assert main(["ui", "--port", "5999"]) == 2
    said = capsys.readouterr().err
    assert "mlflow.db" in said and said.count("\n") == 1 and not server.started
