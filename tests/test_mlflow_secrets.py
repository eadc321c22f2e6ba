"""A password of MLflow's address is in no text and no file; a server that is gone costs seconds."""

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common import mlflow_connection
from data_prep.common.mlflow_connection import PATIENCE, impatient, mlflow_reason, quieten_mlflow
from data_prep.common.redaction import shown_address, without_secrets
from data_prep.store import Store
from pipeline.__main__ import main

ROOT = Path(__file__).parents[1]
SECRET = "pa55w0rd%21x"
TOKEN = "t0k3n-of-the-query"
# Seconds, imports on a busy machine included: it is 13 and less on a quiet one, and minutes with
# the client's own patience.
LONGEST = 60
# The default levels are those of larger images than the tiny store's.
LEAST = ("--model.levels", "[{side: 4, channels: 2}]")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of this machine where nobody listens, with a password and a token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://me:{SECRET}@127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return address


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:secret@host:5000", "http://***@host:5000"),
        ("https://token@host/a/b", "https://***@host/a/b"),
        (
            "postgresql+psycopg2://u:p@ss@db/x?password=abc&a=b",
            "postgresql+psycopg2://***@db/x?***",
        ),
        ("http://host?token=abc", "http://host?***"),
        ("http://u:a/b?c#d@host/x#y", "http://***@host/x#***"),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("mlruns", "mlruns"),
    ],
)
def test_an_address_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert shown_address(address) == shown


WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8, max_size=12)


@given(
    WORDS, WORDS, st.sampled_from(["http://{}:{}@host/", "http://host/?{}={}", "db://{}:{}@h/d"])
)
def test_no_text_holds_them(user: str, password: str, form: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        address = form.format(user, password)
        patch.setenv("MLFLOW_TRACKING_URI", address)
        text = f"request to {address}api/2.0 failed: Basic {user}:{password}, {password}"
        assert password not in without_secrets(text)
        assert password not in shown_address(address)


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"])
def test_nor_one_that_has_a_variable_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "open sesame")
    assert mlflow_reason(OSError("Error: Bearer open sesame\nmore")) == "Error: Bearer ***"


def test_a_password_is_known_with_and_without_percent_signs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@host")
    assert without_secrets(f"{SECRET} pa55w0rd!x") == "*** ***"


def test_a_training_without_its_server_ends_in_one_line_without_the_password(
    nobody: str, work: Path, store_writer: Callable[..., Store], capfd: pytest.CaptureFixture[str]
) -> None:
    store_writer(work)
    assert main(["train", "--data.store", "tiny", *LEAST]) == 2
    said = capfd.readouterr()
    assert len(said.err.splitlines()) == 1
    assert f"MLflow can't be used at {shown_address(nobody)}" in said.err
    assert "pa55w0rd" not in said.out + said.err
    assert_nowhere(work)


def test_so_does_a_preparation_whose_store_is_there_and_soon(
    nobody: str, work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from data_prep import tracking
    from data_prep.common.errors import InputError

    manifest = {
        "name": "x", "configuration": {}, "configuration_digest": "", "image_shape": [1, 32, 32],
        "simulated": False,
    }  # fmt: skip
    store = Store(work / "stores/x", manifest, (), ())
    work.mkdir()
    import mlflow  # noqa: F401  (its import takes long on a busy machine)

    began = time.monotonic()
    with pytest.raises(InputError) as ended:
        tracking.track(store, work)
    assert time.monotonic() - began < LONGEST
    assert "the store x is finished" in str(ended.value)
    assert "pa55w0rd" not in f"{ended.value}{capfd.readouterr()}"
    assert ended.value.__cause__ is None  # a notebook prints the cause, address and all
    assert_nowhere(work)


def assert_nowhere(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"pa55w0rd" not in content and TOKEN.encode() not in content, path


def test_a_package_of_a_registry_that_is_gone_is_told_the_same_way(
    nobody: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["lesions", "--package", "models:/x/1", "--store", "tiny"]) == 2
    said = capfd.readouterr()
    assert len(said.err.splitlines()) == 1 and "pa55w0rd" not in said.err + said.out


def test_mlflow_s_own_patience_comes_back_and_the_user_s_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quieten_mlflow()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with impatient():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert (
            os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]
            == PATIENCE["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]
        )
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_database_that_is_none_is_told_in_seconds(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow tries a database ten times, for 100 seconds."""
    work.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{work}")  # a folder
    began = time.monotonic()
    with pytest.raises(Exception, match="unable to open database"):
        mlflow_connection.mlflow_client("x", work)
    assert time.monotonic() - began < LONGEST


@pytest.fixture
def hushed() -> Iterator[None]:
    level = logging.getLogger("urllib3.connectionpool").level
    yield
    logging.getLogger("urllib3.connectionpool").setLevel(level)


@pytest.mark.usefixtures("hushed")
def test_mlflow_prints_no_address_of_a_run_that_holds_a_password(
    monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    quieten_mlflow()
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"


def test_a_configuration_has_no_place_for_an_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], work: Path
) -> None:
    """It would be written beside the run, and logged: the environment is the only place."""
    config = tmp_path / "c.yaml"
    config.write_text(f"tracking: {{uri: 'http://me:{SECRET}@host'}}\ndata: {{store: tiny}}\n")
    assert main(["train", "--config", str(config)]) == 2
    said = capsys.readouterr()
    assert "uri" in said.err and "pa55w0rd" not in said.err + said.out
    assert_nowhere(work)


def test_ui_shows_an_address_without_them() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "ui"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"MLFLOW_TRACKING_URI": f"http://me:{SECRET}@host:1?token={TOKEN}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "http://host:1 in a browser" in done.stdout
    assert "pa55w0rd" not in done.stdout and TOKEN not in done.stdout


def test_in_a_process_of_its_own_nothing_else_is_said(
    nobody: str, work: Path, store_writer: Callable[..., Store]
) -> None:
    store_writer(work)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "--data.store", "tiny", *LEAST],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "pa55w0rd" not in done.stdout + done.stderr
