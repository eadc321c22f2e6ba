"""The machine's load beside a run: there where it can be measured, and never in the way."""

import sys
import time
from pathlib import Path

import pytest

from data_prep.common.tracking import Tracker, open_mlflow, track_run


def logged(work: Path, run: Tracker) -> set[str]:
    with open_mlflow(work) as client:
        return {key for key in client.get_run(run.run_id).data.metrics if key.startswith("system/")}


def test_the_load_is_logged_where_it_can_be_and_nothing_is_said(
    work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not where MLflow's own switch is off, and not without psutil. Every tenth of a second."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    for value in ("false", "0"):
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", value)
        with track_run("load", work, "off", instead="", machine=True) as run:
            time.sleep(0.3)
        assert not logged(work, run)
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING")
    with track_run("load", work, "on", instead="", machine=True) as run:
        deadline = time.monotonic() + 60
        while not logged(work, run) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert "system/cpu_utilization_percentage" in logged(work, run)
    for name in [name for name in sys.modules if name.startswith("mlflow.system_metrics.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psutil", None)  # importing it raises ImportError
    capfd.readouterr()
    with track_run("load", work, "without", instead="", machine=True) as run:
        time.sleep(0.3)
    assert not logged(work, run) and capfd.readouterr() == ("", "")
