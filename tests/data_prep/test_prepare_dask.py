"""A Dask cluster in place of processes: the same bytes, and nobody is lost when a worker dies."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fragile_worker import double
from small_volumes import write_cohort
from test_prepare_stage import configured
from test_prepare_survival import content

from data_prep.__main__ import main
from data_prep.common.errors import InputError
from data_prep.executors import dask_cluster as dask_executor
from data_prep.sources.source import Job

distributed = pytest.importorskip("distributed", reason="needs the extra 'dask'")

NAMES = [str(n) for n in range(501, 512)]


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """A cluster within this process: its scheduler's address."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        dashboard_address=None,
    ) as cluster:
        yield cluster.scheduler_address


def test_the_bytes_are_those_of_processes_however_many(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_cohort(tmp_path / "raw", NAMES)
    (root / NAMES[3] / "T1w/T1w_acpc_dc_restore_brain.nii.gz").write_bytes(b"")
    stores = []
    for name, keys in {
        "alone": {"workers": 1},
        "two": {"workers": 2},
        "dask": {"scheduler": scheduler},
    }.items():
        monkeypatch.setenv("WORK", str(tmp_path / name))
        assert main(configured(tmp_path, root, max_quarantined=1, **keys)) == 0
        stores.append(content(tmp_path / name / "stores/study"))
    assert stores[0] == stores[1] == stores[2]
    assert len(stores[0]) >= len(NAMES)


def test_workers_that_stand_elsewhere_get_whole_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cohort(tmp_path / "raw", NAMES[:2])
    sent: list[Job] = []

    def run_all(self: object, function: object, items: list[Job], died: object) -> list[object]:
        sent.extend(items)
        raise InputError("seen")

    monkeypatch.setattr(dask_executor.DaskCluster, "run_all", run_all)
    monkeypatch.setenv("WORK", "here")
    monkeypatch.chdir(tmp_path)
    assert main(configured(tmp_path, Path("raw"), scheduler="tcp://127.0.0.1:1")) == 2
    assert len(sent) == 2
    assert all(job.store.is_absolute() and job.item.source_path.is_absolute() for job in sent)


@pytest.mark.parametrize("package", ["torch", "monai"])
def test_a_worker_of_other_versions_is_refused(
    package: str, scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_cohort(tmp_path / "raw", NAMES[:2])
    ours = dask_executor.versions()
    calls = iter([ours | {package: "0.1"}])
    with pytest.MonkeyPatch.context() as patch:
        # The first call is this process's; workers, who share the module here, get the real one.
        patch.setattr(dask_executor, "versions", lambda: next(calls, ours))
        assert main(configured(tmp_path, root, scheduler=scheduler)) == 2
    told = capsys.readouterr().err
    assert f"has {package} {ours[package]}, this process 0.1" in told
    assert told.count("\n") == 1


def test_no_scheduler_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_executor, "SECONDS_TO_CONNECT", 1)
    root = write_cohort(tmp_path / "raw", NAMES[:2])
    assert main(configured(tmp_path, root, scheduler="tcp://127.0.0.1:1")) == 2
    told = capsys.readouterr().err
    assert "no Dask scheduler at tcp://127.0.0.1:1" in told
    assert told.count("\n") == 1


def test_no_worker_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_executor, "SECONDS_TO_CONNECT", 1)
    root = write_cohort(tmp_path / "raw", NAMES[:2])
    with distributed.LocalCluster(
        n_workers=0, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        assert main(configured(tmp_path, root, scheduler=cluster.scheduler_address)) == 2
    assert "has no workers" in capsys.readouterr().err


def test_the_missing_package_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    root = write_cohort(tmp_path / "raw", NAMES[:2])
    assert main(configured(tmp_path, root, scheduler="tcp://127.0.0.1:1")) == 2
    assert "install the extra 'dask'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_that_dies_costs_only_its_own_item() -> None:
    """103 ends the process it runs in, every time; the cluster starts another."""
    sys_path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", sys_path)
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster:
            executor = dask_executor.DaskCluster(cluster.scheduler_address)
            results = executor.run_all(double, [1, 2, 103, 4, 5], died=lambda item: -item)
            assert sorted(results) == [-103, 2, 4, 8, 10]
