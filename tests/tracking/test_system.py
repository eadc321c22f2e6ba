"""The machine's load beside a run: there where it can be measured, and never in the way."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.mlflow_connection import mlflow_address, mlflow_client
from pipeline.tracking.system import system_metrics


@pytest.fixture
def tracked(work: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str, str]:
    """MLflow's client, its address, and a run; the load is measured every tenth of a second."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    client, experiment = mlflow_client("load", work)
    run_id = client.create_run(experiment).info.run_id
    client.update_run(run_id, status="RUNNING")
    return client, mlflow_address(work), run_id


def _logged(client: Any, run_id: str) -> set[str]:
    return {key for key in client.get_run(run_id).data.metrics if key.startswith("system/")}


def test_the_load_is_logged_while_the_block_runs_and_nothing_is_said(
    tracked: tuple[Any, str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    client, uri, run_id = tracked
    with system_metrics(run_id, uri, continued=False):
        deadline = time.monotonic() + 60
        while not _logged(client, run_id) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert "system/cpu_utilization_percentage" in _logged(client, run_id)
    assert capfd.readouterr() == ("", "")


def test_without_psutil_the_run_goes_on_in_silence(
    tracked: tuple[Any, str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    client, uri, run_id = tracked
    for name in [name for name in sys.modules if name.startswith("mlflow.system_metrics.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psutil", None)  # importing it raises ImportError
    with system_metrics(run_id, uri, continued=False):
        time.sleep(0.3)
    assert not _logged(client, run_id) and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", ["false", "False", "0"])
def test_mlflows_own_switch_turns_it_off(
    tracked: tuple[Any, str, str], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    client, uri, run_id = tracked
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", value)
    with system_metrics(run_id, uri, continued=False):
        time.sleep(0.3)
    assert not _logged(client, run_id)
