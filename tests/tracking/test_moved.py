"""A work folder that is copied or moved: MLflow's addresses are absolute, and follow it."""

import hashlib
import sqlite3
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from data_prep.common.tracking import ADDRESSES, mlflow_client
from pipeline.tracking.registry import fetch
from pipeline.tracking.runs import TrackingConfig, track

CONFIG = TrackingConfig(experiment="moved")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A work folder, never changed, with a training run of a text, a store and a model."""
    work = tmp_path_factory.mktemp("a b#c'ü") / "work"
    with track(CONFIG, work, "training") as run:
        run.text("words", "words.txt")
        run.dataset("s", "digest", work / "stores/s", "training")
    client, experiment = mlflow_client(CONFIG.experiment, work)
    assert run.run_id is not None
    model = client.create_logged_model(experiment, "decoder", source_run_id=run.run_id)
    (work / "metadata.json").write_text("{}")
    client.log_model_artifact(model.model_id, str(work / "metadata.json"))
    client.create_registered_model("decoder")
    client.create_model_version(
        "decoder", model.artifact_location, run_id=run.run_id, model_id=model.model_id
    )
    return work, run.run_id


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def places(work: Path) -> set[str]:
    """Every address in the database, but for that of MLflow's own experiment without runs."""
    queries = [f"SELECT {column} FROM {table}" for table, column in ADDRESSES]
    queries += ["SELECT dataset_source FROM datasets"]
    with sqlite3.connect(work / "mlflow.db") as connection:
        rows = [row[0] for query in queries for row in connection.execute(query)]
    return {address.removeprefix('{"uri": "') for address in rows if "mlruns" not in address}


def log(work: Path, parent: str) -> Any:
    """What an evaluation does: a nested run, and marks on the training run. Returns a client."""
    with track(CONFIG, work, "evaluation", parent=parent) as run:
        run.text("scores", "scores.txt")
        run.parent.text("more", "more.txt")
        run.parent.metrics({"test/psnr": 1.0})
    return mlflow_client(CONFIG.experiment, work)[0]


def test_a_copy_writes_into_itself(
    made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, run_id = made
    before, copy = files(original), tmp_path / "copy"
    copytree(original, copy)
    client = log(copy, run_id)
    assert files(original) == before
    assert all(place.startswith(f"{copy}/") for place in places(copy))
    names = {item.path for item in client.list_artifacts(run_id)}
    assert names == {"words.txt", "more.txt"}
    monkeypatch.setenv("WORK", str(copy))
    assert copy in fetch("models:/decoder/1").parents


def test_artifacts_are_found_after_a_move(
    made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: there is no trace of the first place after the first move."""
    work, (original, run_id) = tmp_path / "first", made
    copytree(original, work)
    log(work, run_id)
    for name in ("second", "third"):
        work = work.rename(tmp_path / name)
        monkeypatch.setenv("WORK", str(work))
        assert work in fetch("models:/decoder/1").parents
        client, _ = mlflow_client(CONFIG.experiment, work)
        assert Path(client.download_artifacts(run_id, "words.txt")).read_text() == "words"
        assert all(place.startswith(f"{work}/") for place in places(work))


def test_a_folder_in_its_place_keeps_its_addresses(made: tuple[Path, str], tmp_path: Path) -> None:
    """Under another name of the same folder, too; and where only the database went away."""
    original, run_id = made
    link, alone = tmp_path / "link", tmp_path / "alone"
    link.symlink_to(original)
    before = places(original)
    mlflow_client(CONFIG.experiment, link)
    assert places(original) == before
    work = tmp_path / "work"
    copytree(original, work)
    log(work, run_id)
    before = places(work)
    alone.mkdir()
    (work / "mlflow.db").rename(alone / "mlflow.db")
    mlflow_client(CONFIG.experiment, alone)
    assert places(alone) == before


def test_the_users_own_database_is_not_touched(
    made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, _ = made
    copy = tmp_path / "copy"
    copytree(original, copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}/mlflow.db")
    mlflow_client(CONFIG.experiment, copy)
    assert places(copy) == places(original)
