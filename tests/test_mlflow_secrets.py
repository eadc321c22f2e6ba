"""A password of MLflow's address is in no text and no file; a server that is gone costs seconds."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import tracking
from data_prep.common.errors import InputError
from data_prep.common.tracking import (
    PATIENCE,
    impatient,
    mlflow_client,
    mlflow_errors,
    quieten_mlflow,
    shown_address,
    without_secrets,
)
from data_prep.store import Store
from pipeline.__main__ import main

ROOT = Path(__file__).parents[1]
SECRET = "pa55w0rd%21x"
TOKEN = "t0k3n-of-the-query"
# Seconds, imports on a busy machine included: it is 13 and less on a quiet one, and minutes with
# the client's own patience.
LONGEST = 60
TRAIN = ["train", "--data.store", "tiny", "--model.levels", "[{side: 4, channels: 2}]"]


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of this machine where nobody listens, with a password."""
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
        ("postgresql://u:p@ss@db/x?password=abc&a=b", "postgresql://***@db/x?***"),
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
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@host")
    with pytest.raises(InputError) as told, mlflow_errors("what", "way out"):
        raise OSError(f"Error: Bearer open sesame {SECRET} pa55w0rd!x\nmore")
    assert str(told.value) == "what (Error: Bearer *** *** ***): way out"
    assert told.value.__cause__ is None  # a notebook prints the cause, address and all


def assert_nowhere(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"pa55w0rd" not in content and TOKEN.encode() not in content, path


def test_a_server_that_is_gone_is_one_line_without_the_password(
    nobody: str, work: Path, store_writer: Callable[..., Store], capfd: pytest.CaptureFixture[str]
) -> None:
    store_writer(work)
    for words in (TRAIN, ["lesions", "--package", "models:/x/1", "--store", "tiny"]):
        assert main(words) == 2
        said = capfd.readouterr()
        assert len(said.err.splitlines()) == 1 and shown_address(nobody) in said.err
        assert "pa55w0rd" not in said.out + said.err
    assert_nowhere(work)


def test_so_is_it_for_a_preparation_whose_store_is_there_and_soon(nobody: str, work: Path) -> None:
    manifest = {
        "name": "x", "configuration": {}, "configuration_digest": "", "image_shape": [1, 32, 32],
        "simulated": False,
    }  # fmt: skip
    work.mkdir()
    import mlflow  # noqa: F401  (its import takes long on a busy machine)

    began = time.monotonic()
    with pytest.raises(InputError, match="the store x is finished") as ended:
        tracking.track(Store(work / "stores/x", manifest, (), ()), work)
    assert time.monotonic() - began < LONGEST and "pa55w0rd" not in str(ended.value)
    assert_nowhere(work)


def test_mlflow_s_own_patience_comes_back_and_the_user_s_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quieten_mlflow()
    retries = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv(retries, raising=False)
    with impatient():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ[retries] == PATIENCE[retries]
    assert retries not in os.environ


def test_a_database_that_is_none_is_told_in_seconds(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow tries a database ten times, for 100 seconds."""
    work.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{work}")  # a folder
    began = time.monotonic()
    with pytest.raises(Exception, match="unable to open database"):
        mlflow_client("x", work)
    assert time.monotonic() - began < LONGEST


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


def test_in_processes_of_their_own_nothing_else_is_said(
    nobody: str, work: Path, store_writer: Callable[..., Store]
) -> None:
    """`ui` shows a server's address; MLflow itself would print that of a run, password and all."""
    store_writer(work)
    address = f"http://me:{SECRET}@host:1?token={TOKEN}"
    print_run = "from data_prep.common.tracking import *; quieten_mlflow(); print(os.environ)"
    for words, code, where, shown in (
        (["-m", "pipeline", *TRAIN], 2, nobody, ""),
        (["-m", "pipeline", "ui"], 0, address, "http://host:1 in a browser"),
        (["-c", f"import os\n{print_run}"], 0, address, "SUPPRESS_PRINTING_URL_TO_STDOUT': 'true'"),
    ):
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=ROOT,
            env=os.environ | {"MLFLOW_TRACKING_URI": where}, check=False,
        )  # fmt: skip
        assert (done.returncode, len(done.stderr.splitlines())) == (code, code // 2), done.stderr
        assert shown in done.stdout
        if words[0] == "-m":
            assert "pa55w0rd" not in done.stdout + done.stderr and TOKEN not in done.stdout
