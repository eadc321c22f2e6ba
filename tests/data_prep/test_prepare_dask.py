"""A Dask cluster in place of processes: the same bytes, and nobody is lost when a worker dies."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fragile_worker import double
from studies import Study, content

from data_prep.common.errors import InputError
from data_prep.executors import dask_cluster
from data_prep.sources.source import Job

distributed = pytest.importorskip("distributed", reason="needs the extra 'dask'")


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


def test_the_bytes_are_those_of_processes(scheduler: str, study: Study) -> None:
    before = content(study.folder)
    shutil.rmtree(study.folder)
    study.run(scheduler=scheduler)
    assert content(study.folder) == before


def test_workers_that_stand_elsewhere_get_whole_paths(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Job] = []

    def run(address: str, function: object, items: list[Job], died: object) -> list[object]:
        sent.extend(items)
        raise InputError("seen")

    monkeypatch.setattr(dask_cluster, "run_on_cluster", run)
    monkeypatch.setenv("WORK", "here")
    assert "seen" in study.run(scheduler="tcp://127.0.0.1:1", code=2)
    assert len(sent) == 6
    assert all(job.store.is_absolute() and job.item.source_path.is_absolute() for job in sent)


@pytest.mark.parametrize("package", ["torch", "monai"])
def test_a_worker_of_other_versions_is_refused(package: str, scheduler: str, study: Study) -> None:
    ours = dask_cluster.versions()
    calls = iter([ours | {package: "0.1"}])
    with pytest.MonkeyPatch.context() as patch:
        # The first call is this process's; workers, who share the module here, get the real one.
        patch.setattr(dask_cluster, "versions", lambda: next(calls, ours))
        told = study.run(scheduler=scheduler, plane="coronal", code=2)
    assert f"has {package} {ours[package]}, this process 0.1" in told


def test_what_is_missing_is_named(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler, a worker, the package."""
    monkeypatch.setattr(dask_cluster, "SECONDS_TO_CONNECT", 1)
    keys = {"plane": "coronal", "code": 2, "scheduler": "tcp://127.0.0.1:1"}
    assert "no Dask scheduler at tcp://127.0.0.1:1" in study.run(**keys)  # type: ignore[arg-type]
    with distributed.LocalCluster(
        n_workers=0, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        keys["scheduler"] = cluster.scheduler_address
        assert "has no workers" in study.run(**keys)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "install the extra 'dask'" in study.run(**keys)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_worker_that_dies_costs_only_its_own_item() -> None:
    """103 ends the process it runs in, every time; the cluster starts another."""
    sys_path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", sys_path)
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster:
            address, items = cluster.scheduler_address, [1, 2, 103, 4, 5]
            results = dask_cluster.run_on_cluster(address, double, items, lambda item: -item)
            assert sorted(results) == [-103, 2, 4, 8, 10]
