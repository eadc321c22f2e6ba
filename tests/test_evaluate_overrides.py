"""What `evaluate` is told beside the run is honoured, or refused by name; and who may be scored."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.config import Config
from pipeline.evaluation import evaluate as stage
from pipeline.evaluation import scoring
from pipeline.evaluation.run import fingerprint, trained_store
from pipeline.metrics.perceptual import WeightsNotFound
from pipeline.training.checkpoint import find_checkpoint

Command = Callable[..., str]


@pytest.fixture
def evaluate(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Scores the run, quickly: without the metrics that need weights, which do not come later."""

    def nowhere(*_: object) -> Any:
        raise WeightsNotFound("not here")

    monkeypatch.setattr(scoring, "PerceptualDistance", nowhere)
    monkeypatch.setattr(scoring, "inception_weights", nowhere)
    read = partial(stage.read_evaluation, complete=False)
    monkeypatch.setattr(stage, "read_evaluation", read)

    def run(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["evaluate", "--run", "tiny", *words]) == code
        said = capsys.readouterr()
        if code:
            assert len(said.err.splitlines()) == 1 and said.err.startswith("error: ")
        return said.err if code else said.out

    return run


REFUSED = [
    ("--model.width=8", "model.width: the run was trained with 4;"),
    ("--model={max_width: 16}", "model.max_width: the run was trained with 8;"),
    ("--model.levels=[{side: 4, channels: 1}]", "model.levels: "),
    ("--model.levels+={side: 16, channels: 1, opens: 0.3}", "model.levels: "),
    ("--data={augmentation: {gamma: 0.3}}", "data.augmentation.gamma: "),
    ("--likelihood.term=gaussian", "likelihood.term: the run was trained with 'blur';"),
    ("--likelihood.residual=none", "likelihood.residual: "),
    ("--prior.pieces=3", "prior.pieces: the run was trained with 4;"),
    ("--prepare.size=64", "prepare.size: the run was trained with 32;"),
    ("--training.seed=9", "training.seed: the run was trained with 0;"),
    ("--training.device=cuda:7", "use evaluation.device"),
    ("--training.threads=2", "use evaluation.threads"),
    ("--training.batch_size=4", "use evaluation.batch_size"),
    ("--data.store=elsewhere", "use evaluation.store"),
    ("--evaluation.device=gpu", "evaluation.device 'gpu'"),
    ("--evaluation.threads=-1", "evaluation.threads"),
    ("--restart=true", "--restart"),
]


def test_what_belongs_to_the_training_is_refused_by_name_and_with_the_way_out(
    tiny_run: Path, evaluate: Command
) -> None:
    for word, said in REFUSED:
        assert said in evaluate(word, code=2), word
    config = str(tiny_run.parents[1] / "tiny.yaml")
    assert "can't change model.width" in evaluate("--config", config, "--model.width=8", code=2)
    assert not (tiny_run / "evaluation").exists()


def test_a_run_of_another_machine_s_device_is_scored_and_its_own_keys_may_be_said_again(
    tiny_run: Path, evaluate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its number of threads, too, where the evaluation has none of its own."""
    saved, threads = tiny_run / "config.yaml", []
    content = yaml.safe_load(saved.read_text())
    content["training"]["device"] = "cuda:7"
    saved.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    again = ("--model.width=4", "--data.store=tiny", "--model={max_width: 8}")
    assert "PSNR" in evaluate("--evaluation.device=cpu", *again)
    metrics = tiny_run / "evaluation/metrics.json"
    before = metrics.stat().st_mtime_ns
    # Another device or other threads are no reason to score again; what changes the numbers is.
    said = evaluate("--evaluation.device=auto", "--evaluation.threads=2")
    assert "nothing to do" in said and metrics.stat().st_mtime_ns == before
    said = evaluate("--evaluation.device=cpu", "--evaluation.threads=2", "--evaluation.samples=5")
    assert "nothing to do" not in said and threads == [1, 2]


@pytest.mark.parametrize("families", [None, ["p00", "p01", "p02", "x", "y", "z"]])
def test_another_study_s_people_of_equal_names_are_scored_where_that_is_said(
    tiny_run: Path, evaluate: Command, store_writer: Callable[..., Store], families: Any
) -> None:
    """Names of people, or of families; p00 to p02 were trained on."""
    prefix = "f" if families else "p"
    store_writer(tiny_run.parents[1], "other", prefix=prefix, seed=90, families=families)
    words = ("--evaluation.store=other", "--evaluation.split=all")
    said = evaluate(*words, code=2)
    assert "3 of 6" in said and "evaluation.other_people true" in said
    said = evaluate(*words, "--evaluation.other_people=true")
    told = "file digests (SHA-256) were compared"
    assert told in said and "PSNR" in said
    assert told in (tiny_run / "evaluation-other-all/inputs.json").read_text()


@pytest.mark.parametrize("prefix", ["p", "q"])
@pytest.mark.parametrize(("split", "role"), [("all", "trained on"), ("test", "chose the checkp")])
def test_a_file_of_training_or_validation_is_refused_whatever_is_said_of_its_name(
    tiny_run: Path,
    evaluate: Command,
    store_writer: Callable[..., Store],
    prefix: str,
    split: str,
    role: str,
) -> None:
    """p03, the validation subject, is the other store's test subject."""
    splits = ["train", "train", "train", "test", "validation", "validation"]
    store_writer(tiny_run.parents[1], "copy", prefix=prefix, splits=splits, families=list("abcdef"))
    words = ("--evaluation.store=copy", f"--evaluation.split={split}")
    for more in ((), ("--evaluation.other_people=true",)):
        said = evaluate(*words, *more, code=2)
        assert role in said and ("other_people" in said) == (not more)
        assert ("q03 is the file of p03" in said) == (prefix == "q" and split == "test")


def test_validation_subjects_are_scored_as_the_run_s_own_and_called_so(
    tiny_run: Path, evaluate: Command
) -> None:
    said = evaluate("--evaluation.split=validation")
    assert "note: these subjects chose the checkpoint" in said
    page = (tiny_run / "evaluation-validation/report.html").read_text()
    assert "These subjects chose the checkpoint" in page and "unseen simulated" not in page
    others = "--evaluation.other_people=true"
    said = evaluate("--evaluation.split=all", code=2)
    assert "3 of 6" in said and "p00" in said and "p03" not in said
    assert "set evaluation.store" in evaluate(others, code=2)
    said = evaluate("--evaluation.store=tiny", others, code=2)
    assert "is the one that was trained on" in said


@pytest.mark.parametrize("path", ["tiny", "/scratch/stores/elsewhere"])
def test_the_store_trained_on_is_known_by_its_path_or_name_and_its_digest(
    tiny_run: Path, path: str
) -> None:
    checkpoint = find_checkpoint(tiny_run / "checkpoints", "best")
    state, stores = checkpoint.state, tiny_run.parents[1] / "stores"
    state.config["data"]["store"] = path
    store = trained_store(state)
    assert store is not None and store.digest == Store.open(stores / "tiny").digest
    there = fingerprint(checkpoint, store, Config())
    stores.rename(stores.with_name("moved"))
    assert trained_store(state) is None
    assert fingerprint(checkpoint, store, Config()) != there, "scores differ without it"
    stores.with_name("moved").rename(stores)
    state.store["digest"] = "0" * 64
    assert trained_store(state) is None
