"""What `evaluate` is told beside the run: honoured, or refused by name; nothing is ignored."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.backbones import WeightsNotFound
from pipeline.evaluation import networks, record, trained_run

LEVELS: list[dict[str, Any]] = [{"side": 4, "channels": 2}, {"side": 8, "channels": 1}]
CONFIG: dict[str, Any] = {
    "prepare": {"size": 32},
    "data": {"store": "tiny"},
    "model": {
        "levels": LEVELS, "width": 4, "max_width": 8, "residual_blocks": 0, "kernel_hidden": 8,
    },
    "likelihood": {"kernel_size": 5, "warmup_epochs": 1, "residual_steps": 2},
    "training": {"epochs": 2, "batch_size": 6, "rate_warmup_steps": 2, "threads": 1},
    "prior": {"images": 40},
    "evaluation": {"samples": 4},
    "tracking": {"enabled": False},
}  # fmt: skip

Command = Callable[..., str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, store_writer: Callable[..., Store]) -> Path:
    """A work folder with a store and the run `tiny`, trained with device auto and not scored."""
    work = tmp_path_factory.mktemp("overrides").resolve() / "work"
    store_writer(work)
    (work / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORK", str(work))
        assert main(["train", "--config", str(work / "tiny.yaml")]) == 0
    return work


@pytest.fixture
def evaluate(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Scores the run, quickly: without the metrics that need weights, which do not come later."""

    def nowhere(*_: object) -> Any:
        raise WeightsNotFound("not here")

    monkeypatch.setenv("WORK", str(trained))
    monkeypatch.setattr(networks, "PerceptualDistance", nowhere)
    monkeypatch.setattr(networks, "inception_weights", nowhere)
    monkeypatch.setattr(record, "_may_be_had_now", lambda *_: False)
    capsys.readouterr()

    def run(*words: str, code: int = 0) -> str:
        assert main(["evaluate", "--run", "tiny", *words]) == code
        said = capsys.readouterr()
        if code:
            assert len(said.err.splitlines()) == 1 and said.err.startswith("error: ")
        return said.err if code else said.out

    return run


@pytest.fixture
def anew(trained: Path) -> None:
    """The run is not scored yet."""
    shutil.rmtree(trained / "runs/tiny/evaluation", ignore_errors=True)


ANOTHER_RUN = "leave it out, or train another run with it"
REFUSED = [
    (["--model.width", "999996"], "model.width", "trained with 4;", ANOTHER_RUN),
    (["--model.width=8"], "model.width", "trained with 4;", ANOTHER_RUN),
    (["--model.levels", "[{side: 4, channels: 1}]"], "model.levels", "'channels': 2", ANOTHER_RUN),
    (["--model", "{width: 8}"], "model.width", "trained with 4;", ANOTHER_RUN),
    (["--model={max_width: 16}"], "model.max_width", "trained with 8;", ANOTHER_RUN),
    (["--likelihood.term", "gaussian"], "likelihood.term", "'blur'", ANOTHER_RUN),
    (["--data.augmentation.gamma", "0.3"], "data.augmentation.gamma", "", ANOTHER_RUN),
    (["--prepare.size", "64"], "prepare.size", "trained with 32;", ANOTHER_RUN),
    (["--prior.pieces", "3"], "prior.pieces", "trained with 128;", ANOTHER_RUN),
    (["--likelihood.residual", "none"], "likelihood.residual", "'fitted'", ANOTHER_RUN),
    (["--training.seed", "9"], "training.seed", "trained with 0;", ANOTHER_RUN),
    (["--training.device", "cpu"], "training.device", "'auto'", "use evaluation.device"),
    (["--training.threads", "2"], "training.threads", "with 1;", "use evaluation.threads"),
    (["--training.batch_size", "4"], "training.batch_size", "with 6;", "use evaluation.batch_size"),
    (["--data.store", "elsewhere"], "data.store", "'tiny'", "use evaluation.store"),
]


@pytest.mark.parametrize("with_config", [False, True], ids=["", "--config"])
@pytest.mark.parametrize(
    ("words", "key", "value", "way_out"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED]
)
def test_what_belongs_to_the_training_is_refused_by_name_and_with_the_way_out(
    trained: Path, evaluate: Command, words: list[str], key: str, value: str, way_out: str,
    with_config: bool,
) -> None:  # fmt: skip
    config = ["--config", str(trained / "tiny.yaml")] if with_config else []
    said = evaluate(*config, *words, code=2)
    assert f"evaluate can't change {key}:" in said and value in said and way_out in said


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--data.augmentation", "{gamma: 0.3}"], "data.augmentation.gamma"),
        (["--data", "{augmentation: {gamma: 0.3}}"], "data.augmentation.gamma"),
        (["--prepare.cohort", "{people: 3}"], "prepare.cohort.people"),
        (["--model.levels+", "{side: 16, channels: 1}"], "model.levels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_so_is_a_part_of_a_section_or_of_a_list(
    evaluate: Command, words: list[str], key: str
) -> None:
    assert f"evaluate can't change {key}:" in evaluate(*words, code=2)


def test_a_restart_is_refused_for_it_is_the_training_s(evaluate: Command) -> None:
    assert "--restart" in evaluate("--restart", "true", code=2)


def test_of_several_that_are_refused_one_is_named_and_nothing_is_scored(
    trained: Path, evaluate: Command, anew: None
) -> None:
    said = evaluate("--evaluation.samples", "5", "--model.width=8", "--training.seed=3", code=2)
    assert "model.width" in said or "training.seed" in said
    assert not (trained / "runs/tiny/evaluation").exists()


def test_what_the_run_was_trained_with_may_be_said_again(evaluate: Command) -> None:
    said = evaluate(
        "--model.width", "4", "--training.device", "auto", "--training.threads=1",
        "--data.store", "tiny", "--model", f"{{max_width: 8, levels: {LEVELS}}}",
        "--model.levels", f"{LEVELS}", "--likelihood.term=blur",
    )  # fmt: skip
    assert "PSNR" in said


def test_device_and_threads_of_the_evaluation_are_honoured(
    evaluate: Command, anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, threads = [], []
    choose = trained_run.choose_device

    def choosing(*words: str) -> torch.device:
        devices.append(words)
        return choose(*words)

    monkeypatch.setattr(trained_run, "choose_device", choosing)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    evaluate("--evaluation.device", "cpu", "--evaluation.threads", "2")
    assert devices == [("cpu", "evaluation.device")] and threads == [2]


def test_without_threads_of_its_own_the_evaluation_has_the_training_s(
    evaluate: Command, anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    evaluate()
    assert threads == [1]


def test_a_run_of_another_machine_s_device_is_scored_on_this_one_s(
    trained: Path, evaluate: Command, anew: None
) -> None:
    saved = trained / "runs/tiny/config.yaml"
    text = saved.read_text()
    content = yaml.safe_load(text)
    content["training"]["device"] = "cuda:7"
    try:
        saved.write_text(yaml.safe_dump(content))
        assert "PSNR" in evaluate("--evaluation.device", "cpu")
    finally:
        saved.write_text(text)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--evaluation.device", "gpu"], "evaluation.device 'gpu'"),
        (["--evaluation.threads", "-1"], "evaluation.threads"),
        (["--evaluation.threads", "many"], "evaluation.threads"),
    ],
    ids=str,
)
def test_a_device_or_threads_that_can_not_be_are_refused_by_name(
    evaluate: Command, anew: None, words: list[str], key: str
) -> None:
    assert key in evaluate(*words, code=2)


def test_another_device_or_other_threads_are_no_reason_to_score_again(
    trained: Path, evaluate: Command, anew: None
) -> None:
    assert "nothing to do" not in evaluate()
    metrics = trained / "runs/tiny/evaluation/metrics.json"
    before = metrics.stat().st_mtime_ns
    said = evaluate("--evaluation.device", "cpu", "--evaluation.threads", "1")
    assert "nothing to do" in said and metrics.stat().st_mtime_ns == before
    # What changes the numbers is one.
    assert "nothing to do" not in evaluate("--evaluation.samples", "5")


OTHERS = ["--evaluation.split", "all", "--evaluation.other_people", "true"]


def test_another_study_s_people_of_equal_names_are_scored_where_that_is_said(
    trained: Path, evaluate: Command, store_writer: Callable[..., Store]
) -> None:
    store_writer(trained, "other", seed=90)  # p00 to p05, as those of the training
    said = evaluate("--evaluation.store", "other", "--evaluation.split", "all", code=2)
    assert "trained on" in said and "evaluation.other_people true" in said
    said = evaluate("--evaluation.store", "other", *OTHERS)
    assert "file digests (SHA-256) were compared" in said and "PSNR" in said
    inputs = (trained / "runs/tiny/evaluation-other-all/inputs.json").read_text()
    assert "file digests (SHA-256) were compared" in inputs


def test_so_are_families_of_equal_names(
    trained: Path, evaluate: Command, store_writer: Callable[..., Store]
) -> None:
    families = ["p00", "p01", "p02", "x", "y", "z"]
    store_writer(trained, "families", prefix="f", seed=91, families=families)
    said = evaluate("--evaluation.store", "families", "--evaluation.split", "all", code=2)
    assert "3 of 6" in said
    assert "PSNR" in evaluate("--evaluation.store", "families", *OTHERS)


@pytest.mark.parametrize("prefix", ["p", "q"])
def test_a_file_that_was_trained_on_is_refused_all_the_same(
    trained: Path, evaluate: Command, store_writer: Callable[..., Store], prefix: str
) -> None:
    store_writer(trained, f"copy-{prefix}", prefix=prefix, seed=0, families=list("abcdef"))
    said = evaluate("--evaluation.store", f"copy-{prefix}", *OTHERS, code=2)
    assert "3 of 6" in said and "trained on" in said and "other_people" not in said
    if prefix == "q":
        assert "q00 is the file of p00" in said


@pytest.mark.parametrize("prefix", ["p", "q"])
def test_who_chose_the_checkpoint_is_scored_as_the_run_s_own_validation_split_alone(
    trained: Path, evaluate: Command, store_writer: Callable[..., Store], prefix: str
) -> None:
    """Elsewhere by name, or under another name by file; p03 was the validation subject."""
    splits = ["train", "train", "train", "test", "validation", "validation"]
    store_writer(trained, f"chose-{prefix}", prefix=prefix, splits=splits)
    words = ["--evaluation.store", f"chose-{prefix}"]
    said = evaluate(*words, code=2)
    assert "chose the checkpoint" in said and f"{prefix}03" in said
    assert "chose the checkpoint" in evaluate(*words, "--evaluation.other_people", "true", code=2)
    said = evaluate("--evaluation.split", "validation")
    assert "note: these subjects chose the checkpoint" in said
    page = (trained / "runs/tiny/evaluation-validation/report.html").read_text()
    assert "These subjects chose the checkpoint" in page and "unseen simulated" not in page


def test_the_people_of_the_run_s_own_store_are_its_own(trained: Path, evaluate: Command) -> None:
    said = evaluate(*OTHERS, code=2)
    assert "evaluation.other_people is for another store: set evaluation.store" in said
    said = evaluate("--evaluation.store", "tiny", *OTHERS, code=2)
    assert "is the one that was trained on" in said
