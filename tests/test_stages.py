"""The stages end to end, on a tiny store: the files of the design, refusals, MLflow."""

import contextlib
import csv
import html
import io
import json
import logging
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import TINY

from data_prep.common.provenance import code_version
from data_prep.common.tracking import NOTE, Tracker
from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.config import Config, EvaluationConfig
from pipeline.data.config import DataConfig
from pipeline.evaluation import report, scoring
from pipeline.evaluation import run as scored_run
from pipeline.evaluation.calibration import FITTED, keys
from pipeline.metrics.catalogue import HEADLINE, MEMORISATION
from pipeline.metrics.perceptual import PerceptualDistance, WeightsNotFound
from pipeline.tracking.runs import score_name
from pipeline.training import train
from pipeline.training.checkpoint import Checkpoint, find_checkpoint
from pipeline.training.loop import Trainer

FILES = """
checkpoints/best.json
checkpoints/step-00000006/manifest.json
checkpoints/step-00000006/state.pt
checkpoints/step-00000006/weights.safetensors
checkpoints/step-00000009/manifest.json
checkpoints/step-00000009/state.pt
checkpoints/step-00000009/weights.safetensors
config.yaml
evaluation/calibration.json
evaluation/figures/calibration.png
evaluation/figures/error_bars.png
evaluation/figures/kernels.png
evaluation/figures/reconstructions.png
evaluation/figures/samples.png
evaluation/figures/spectra.png
evaluation/inputs.json
evaluation/metrics.json
evaluation/per_subject.csv
evaluation/report.html
fits/fits.json
fits/prior.safetensors
fits/residual.safetensors
"""
COUNTS = {"families", "calibration_families"}
COPIES = {metric.key for metric in MEMORISATION} | {"sample_families"}
# The design's keys that need no weights.
KEYS = {
    "psnr", "ssim", "blur_effect", "blur_effect_data", "high_frequency_ratio", "spectrum_error",
    "rate", *COUNTS, "elbo_bits_per_dim",
    "sample_blur_effect", "sample_high_frequency_ratio",
    "sample_spectrum_error", "gradient_magnitude_ratio", "sample_gradient_magnitude_ratio",
    "kernel_width", "floor_psnr", "floor_ssim", "elbo_bits_per_dim_fitted",
    *keys("blur"), *keys(FITTED), *COPIES,
}  # fmt: skip
SETS = {
    "kid_vgg16", "fd_vgg16", "sample_kid_vgg16", "sample_fd_vgg16", "sample_kid_coarse",
    "training_kid_coarse",
}  # fmt: skip
FID = {"fid", "sample_fid"}
WEIGHTED = {"lpips_alex", "lpips_vgg", "floor_lpips_alex", "floor_lpips_vgg", *SETS}
CONFIG = {key: value for key, value in TINY.items() if key != "data"} | {
    "evaluation": {"samples": 8}
}


@dataclass(frozen=True)
class Trained:
    """A work folder with one run trained and scored, and what the commands printed."""

    work: Path
    config: Path
    trained: str
    scored: str

    @property
    def run(self) -> Path:
        return self.work / "runs/tiny"

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.work}/mlflow.db")

    def tracked(self) -> tuple[Any, Any]:
        """The MLflow runs of training and of evaluation."""
        parent = self.client().get_run(_last(self.run).state.tracking_run)
        evaluations = self.client().search_runs(
            ["1"],
            "tags.run = 'tiny' and tags.dataset = 'tiny' and tags.stage = 'evaluation' and "
            "tags.split = 'test' and attributes.status = 'FINISHED'",
        )
        return parent, evaluations[0]  # the latest: a run is scored again where its report is gone


def _last(run: Path) -> Checkpoint:
    return find_checkpoint(run / "checkpoints", "last")


def _run(work: Path, *words: object) -> str:
    """Runs a command that must succeed, outside of any test's own WORK; returns its output."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setenv("WORK", str(work))
        assert main([str(word) for word in words]) == 0
    return said.getvalue()


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, store_writer: Callable[..., Store]
) -> Trained:
    work = tmp_path_factory.mktemp("stages").resolve() / "work"
    store_writer(work)
    store_writer(work, "elsewhere", seed=1, prefix="q", splits=("train", "validation", "test"))
    store_writer(work, "colour", prefix="c", seed=70, channels=3)
    store_writer(work, "nobody", prefix="n", seed=71, splits=("train",))
    config = work / "tiny.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    said = _run(work, "train", "--config", config)
    return Trained(work, config, said, _run(work, "evaluate", "--run", "tiny"))


def _metrics(folder: Path) -> dict[str, dict[str, float]]:
    return json.loads((folder / "metrics.json").read_text())


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _artifact(run: Any, name: str) -> str:
    """A text among the artifacts of an MLflow run."""
    return (Path(run.info.artifact_uri.removeprefix("file://")) / name).read_text()


def _has_weights() -> bool:
    try:
        PerceptualDistance("alex")
    except WeightsNotFound:
        return False
    return True


def test_files_metrics_and_table_are_those_of_the_design(trained: Trained) -> None:
    paths = [p.relative_to(trained.run) for p in trained.run.rglob("*") if p.is_file()]
    own = sorted(str(path) for path in paths if not str(path).startswith("evaluation-"))
    assert own == FILES.split()
    metrics = _metrics(trained.run / "evaluation")
    assert set(metrics) - FID == KEYS | (WEIGHTED if _has_weights() else set())
    with (trained.run / "evaluation/per_subject.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["subject"], row["split"], row["slices"]) for row in rows] == [
        ("p04", "test", "6"), ("p05", "test", "6"),
    ]  # fmt: skip
    for key, interval in metrics.items():
        assert list(interval) == ["mean", "low", "high"]
        if key in (COUNTS | COPIES | SETS | FID) - {"sample_membership_control"}:
            assert interval["low"] is None and interval["high"] is None
        else:
            assert interval["low"] <= interval["mean"] <= interval["high"]
        if key not in {"sample_blur_effect", *COUNTS, *COPIES, *SETS, *FID}:
            mean = sum(float(row[key]) for row in rows) / len(rows)
            assert mean == pytest.approx(interval["mean"])


def test_what_is_printed_is_the_table_and_where_to_look_next(trained: Trained) -> None:
    metrics = _metrics(trained.run / "evaluation")
    lines = trained.scored.splitlines()
    (psnr,) = (line for line in lines if line.startswith("  PSNR, dB"))
    values = (f"{metrics['psnr'][part]:.2f}" for part in ("mean", "low", "high"))
    floor = f"{metrics['floor_psnr']['mean']:.2f}"
    assert psnr.split()[2:] == ["↑", *("{} [{}, {}]".format(*values)).split(), floor]
    assert [line.split(":", 1)[0] for line in lines[-3:]] == ["report", "all runs", "for your code"]
    assert str(trained.run / "evaluation/report.html") in lines[-3]


def test_the_commands_of_the_report_give_the_same_scores(trained: Trained) -> None:
    """From the saved configuration, which is complete and alone repeats the run."""
    page = (trained.run / "evaluation/report.html").read_text()
    commands = html.unescape(page.partition('<pre id="commands">')[2].partition("</pre>")[0])
    for line in commands.splitlines():
        work, python, flag, name, *words = shlex.split(line)
        assert (work, flag, name) == (f"WORK={trained.work}", "-m", "pipeline")
        assert python in ("python", ".venv/bin/python")
        _run(trained.work, *words, "--tracking.enabled", "false")
    again = trained.work / "runs/tiny-again"
    assert _metrics(again / "evaluation") == _metrics(trained.run / "evaluation")
    weights = _last(again).weights
    assert all(torch.equal(value, weights[k]) for k, value in _last(trained.run).weights.items())
    saved, repeated = (
        yaml.safe_load((f / "config.yaml").read_text()) for f in (trained.run, again)
    )
    assert saved["data"]["store"] == "tiny" and saved["training"]["seed"] == 0
    assert repeated | {"tracking": saved["tracking"]} == saved


def test_a_second_time_there_is_nothing_to_do(trained: Trained) -> None:
    """Nor where a key is another that changes no result."""
    before = {p: p.stat().st_mtime_ns for p in trained.run.rglob("*") if p.is_file()}
    runs = len(trained.client().search_runs(["1"]))
    train_it = ("train", "--config", trained.config)
    for words in (
        train_it,
        (*train_it, "--training.threads=1"),
        (*train_it, "--evaluation.samples=9"),
        ("evaluate", "--run", "tiny"),
        ("evaluate", "--config", trained.config),
    ):
        assert "nothing to do" in _run(trained.work, *words)
    assert {p: p.stat().st_mtime_ns for p in trained.run.rglob("*") if p.is_file()} == before
    assert len(trained.client().search_runs(["1"])) == runs


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("train --training.epochs 5", "training.epochs --restart"),
        ("train --training.rate_target 7", "training.rate_target --restart"),
        ("train --likelihood.term gaussian", "likelihood.term --restart"),
        ("train --model.levels '[{side: 4, channels: 3}]'", "model.levels --restart"),
        ("train --data.augmentation.gamma 0.3", "data.augmentation.gamma --restart"),
        ("evaluate --evaluation.store colour", "colour (3, 32, 32) (1, 32, 32)"),
        ("evaluate --evaluation.store nobody", "no subjects in split test"),
        ("evaluate --evaluation.lpips_alex_weights no.pth", "evaluation.lpips_alex_weights no.pth"),
        ("evaluate --evaluation.inception_weights no.pth", "evaluation.inception_weights no.pth"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(
    trained: Trained,
    argv: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORK", str(trained.work))
    command, *rest = shlex.split(argv)
    of_run = ["--config", str(trained.config)] if command == "train" else ["--run", "tiny"]
    assert main([command, *of_run, *rest]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words.split()), line


def test_a_changed_store_is_refused(
    tiny_run: Path, store_writer: Callable[..., Store], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--config", str(tiny_run.parents[1] / "tiny.yaml")]
    store_writer(tiny_run.parents[1], seed=9)
    assert main(arguments) == 2
    assert "another prepared store" in capsys.readouterr().err
    assert main([*arguments, "--restart"]) == 0


@pytest.fixture
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no weights are found."""

    def nowhere(network: str, *_: object) -> Any:
        raise WeightsNotFound(f"no weights for {network} anywhere")

    monkeypatch.setattr(scoring, "PerceptualDistance", nowhere)
    monkeypatch.setattr(scoring, "inception_weights", lambda *_: nowhere("FID"))


def test_another_store_is_scored_in_a_folder_of_its_own(
    trained: Trained, without_weights: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Without weights their scores are absent, and MLflow and the log say why."""
    with caplog.at_level(logging.WARNING):
        _run(
            trained.work, "evaluate", "--run", "tiny", "--evaluation.store", "elsewhere",
            "--evaluation.split", "all", "--evaluation.max_slices", "3",
        )  # fmt: skip
    folder = trained.run / "evaluation-elsewhere-all"
    assert set(_metrics(folder)) == KEYS
    rows = list(csv.DictReader((folder / "per_subject.csv").open()))
    assert [(row["subject"], row["slices"]) for row in rows] == [
        ("q00", "3"), ("q01", "3"), ("q02", "3"),
    ]  # fmt: skip
    assert _metrics(trained.run / "evaluation")["psnr"] != _metrics(folder)["psnr"]
    for network in ("alex", "vgg"):
        assert f"no weights for {network} anywhere" in caplog.text
    (scored, *_) = trained.client().search_runs(["1"], "tags.dataset = 'elsewhere'")
    absent = json.loads(_artifact(scored, "absent.json"))
    for key in ("lpips_alex", "kid_vgg16", "sample_fd_vgg16", "fid"):
        assert "anywhere" in absent[key]


def test_scores_of_validation_subjects_leave_those_of_test_subjects_alone(
    trained: Trained, without_weights: None
) -> None:
    """In the folder, and in what MLflow shows of the training run."""
    before, shown = _content(trained.run / "evaluation"), trained.tracked()[0].data
    _run(trained.work, "evaluate", "--run", "tiny", "--evaluation.split", "validation")
    assert _content(trained.run / "evaluation") == before
    scores = _metrics(trained.run / "evaluation-validation")
    now = trained.tracked()[0].data
    assert now.metrics["evaluation-validation/psnr"] == pytest.approx(scores["psnr"]["mean"])
    assert shown.metrics.items() <= now.metrics.items()
    assert shown.tags["evaluation_run"] == now.tags["evaluation_run"]


def test_no_two_splits_or_stores_share_a_folder(
    work: Path, store_writer: Callable[..., Store]
) -> None:
    for store, split, folder in (
        ("tiny", "test", "evaluation"),
        ("tiny", "all", "evaluation-all"),
        ("other", "test", "evaluation-other"),
        ("other", "validation", "evaluation-other-validation"),
        ("validation", "test", "evaluation-validation-test"),
        ("a-all", "test", "evaluation-a-all-test"),
    ):
        settings = EvaluationConfig(split=split)  # type: ignore[arg-type]
        config = Config(data=DataConfig(store="tiny"), evaluation=settings)
        assert scored_run.evaluation_folder(config, store_writer(work, store)) == folder


def test_an_interrupted_evaluation_leaves_the_one_before(
    trained: Trained, without_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _content(trained.run / "evaluation")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write_json", interrupted)
    monkeypatch.setenv("WORK", str(trained.work))
    assert main(["evaluate", "--run", "tiny", "--evaluation.samples", "5"]) == 130
    assert _content(trained.run / "evaluation") == before
    assert not list(trained.run.glob(".evaluation*"))


@pytest.mark.parametrize(
    ("left_out", "here", "again"),
    [(set(), False, False), ({"kid_vgg16"}, False, True), (set(), True, True)],
)
def test_what_was_left_out_is_scored_once_its_weights_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: set[str], here: bool, again: bool
) -> None:
    def find(weights: str, download: bool = False) -> Path:
        if not here:
            raise WeightsNotFound("nowhere")
        return Path("weights.pth")

    monkeypatch.setattr(scored_run, "inception_weights", find)
    inputs = {"evaluation": asdict(EvaluationConfig())}
    metrics = {key: {"mean": 1.0, "low": None, "high": None} for key in WEIGHTED - left_out}
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert scored_run.read_evaluation(tmp_path, inputs) == (None if again else metrics)


def test_mlflow_holds_the_training_run(trained: Trained) -> None:
    run, _ = trained.tracked()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny, blur, seed 0"
    assert run.data.params["training.epochs"] == "3"
    assert json.loads(run.data.params["model.levels"].replace("'", '"')) == [
        {"side": 4, "channels": 2, "groups": 1, "opens": 0.0},
        {"side": 8, "channels": 1, "groups": 1, "opens": 0.2},
    ]
    assert run.data.params["training.rate_warmup_steps"] == "2"
    wanted = {"stage": "training", "run": "tiny", "dataset": "tiny", "term": "blur",
              "form": "wiener", "size": "32", "seed": "0", "simulated": "true",
              **code_version()}  # fmt: skip
    assert wanted.items() <= run.data.tags.items()
    assert {
        "train/elbo", "train/distortion", "train/rate", "train/rate_side_4", "train/rate_side_8",
        "train/levels_open", "train/kernel_loss", "train/kernel_width", "validation/psnr",
        "validation/high_frequency_ratio", "train/images_per_second",
    } <= set(run.data.metrics)  # fmt: skip
    note = run.data.tags[NOTE]
    assert "simulated" in note and "3 train, 1 validation, 2 test" in note
    client = trained.client()
    history = client.get_metric_history(run.info.run_id, "validation/psnr")
    assert [point.step for point in history] == [1, 2, 3]
    names = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "images")]
    assert sum(name.endswith(".png") for name in names) == 4  # step 0 and every epoch
    assert "config.yaml" in [artifact.path for artifact in client.list_artifacts(run.info.run_id)]
    (entry,) = run.inputs.dataset_inputs
    digest = _last(trained.run).state.store["digest"]
    assert entry.dataset.name == "tiny" and len(entry.dataset.digest) >= 16
    assert digest.startswith(entry.dataset.digest) and run.data.tags["store_digest"] == digest
    assert [tag.value for tag in entry.tags] == ["training"]


def test_mlflow_holds_the_evaluation_nested_in_the_training_run(trained: Trained) -> None:
    parent, run = trained.tracked()
    metrics = _metrics(trained.run / "evaluation")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.info.status == "FINISHED"
    logged = {k: value for k, value in run.data.metrics.items() if not k.startswith("system/")}
    assert logged == pytest.approx({score_name(k): i["mean"] for k, i in metrics.items()})
    table = json.loads(_artifact(run, "scores.json"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert {row["key"]: {k: row[k] for k in ("mean", "low", "high")} for row in rows} == {
        key: pytest.approx(interval) for key, interval in metrics.items()
    }
    figures = {a.path for a in trained.client().list_artifacts(run.info.run_id, "figures")}
    drawn = ("calibration", "error_bars", "kernels", "reconstructions", "samples", "spectra")
    assert figures == {f"figures/{name}.png" for name in drawn}
    files = {a.path for a in trained.client().list_artifacts(run.info.run_id)}
    assert {"report.html", "metrics.json", "per_subject.csv"} <= files
    (entry,) = run.inputs.dataset_inputs
    assert [tag.value for tag in entry.tags] == ["evaluation"]

    # The training run shows the headline scores, and leads to the evaluation.
    keys = [metric.key for metric in HEADLINE if metric.key in metrics]
    headline = {score_name(key): metrics[key]["mean"] for key in keys}
    assert "test/psnr" in headline and "samples/flagged" in headline
    assert {k: parent.data.metrics[k] for k in headline} == pytest.approx(headline)
    assert parent.data.tags["evaluation_run"] == run.info.run_id
    assert f"| {metrics['psnr']['mean']:.2f} |" in run.data.tags[NOTE]
    experiment = trained.client().get_experiment_by_name("sharp-vae-mri")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "tags.stage" in experiment.tags[NOTE]


def test_the_given_tracking_server_wins(
    work: Path, tmp_path: Path, store_writer: Callable[..., Store], monkeypatch: pytest.MonkeyPatch,
    trained: Trained,
) -> None:  # fmt: skip
    """A copy of a made database stands for the server: making one takes seconds."""
    server = tmp_path / "server.db"
    shutil.copy(trained.work / "mlflow.db", server)
    store_writer(work)
    monkeypatch.chdir(tmp_path)  # where MLflow puts the artifacts of such a database
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{server}")
    arguments = ["train", "--config", str(trained.config), "--run", "served"]
    assert main([*arguments, "--training.epochs", "1", "--tracking.experiment", "mine"]) == 0
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{server}")
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.run_name == "tiny, blur, seed 0 (served)"
    assert not (work / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_training_that_breaks_off_says_so_in_mlflow(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    def breaks(self: Trainer, tracker: Tracker, *_: Any) -> Any:
        raise error

    monkeypatch.setattr(Trainer, "fit", breaks)
    monkeypatch.setenv("WORK", str(trained.work))
    arguments = ["train", "--config", str(trained.config), "--run", f"breaks-{status}"]
    if isinstance(error, KeyboardInterrupt):
        assert main(arguments) == 130
    else:
        with pytest.raises(RuntimeError, match="broken"):
            main(arguments)
    (run,) = trained.client().search_runs(["1"], f"tags.run = 'breaks-{status}'")
    assert run.info.status == status


def test_an_interrupted_training_goes_on_in_the_same_mlflow_run(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORK", str(trained.work))
    arguments = ["train", "--config", str(trained.config), "--run", "halves"]
    picture = Trainer._picture

    def interrupted(self: Trainer) -> None:
        picture(self)
        if self.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_picture", interrupted)
    assert main(arguments) == 130
    monkeypatch.setattr(Trainer, "_picture", picture)
    said = _run(trained.work, *arguments)
    assert "going on from step 3 in epoch 2" in said
    (run,) = trained.client().search_runs(["1"], "tags.run = 'halves'")
    assert run.info.status == "FINISHED"
    whole, halves = (_last(trained.work / "runs" / name).weights for name in ("tiny", "halves"))
    assert all(torch.equal(value, halves[key]) for key, value in whole.items())


def test_a_gaussian_run_of_colour_images_passes_the_same_way(
    work: Path, store_writer: Callable[..., Store], tmp_path: Path, without_weights: None
) -> None:
    store_writer(work, channels=3, splits=("train", "test"))  # no subjects to validate on
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "tracking": {"enabled": False}}))
    _run(work, "train", "--config", config, "--likelihood.term", "gaussian")
    _run(work, "evaluate", "--run", "tiny")
    run = work / "runs/tiny"
    assert not (run / "evaluation/figures/kernels.png").exists()
    assert set(_metrics(run / "evaluation")) == KEYS - COPIES - {"kernel_width"}


def test_every_decisive_key_is_compared() -> None:
    """A key added to a section is decisive until someone says that it is not."""
    from pipeline.config import Config

    config = asdict(Config())
    changed = json.loads(json.dumps(config).replace("true", '"other"'))
    assert train.differences(config, config) == []
    assert train.differences(config, changed) == [
        "data.augmentation.enabled", "data.flip", "likelihood.detach_kernel",
    ]  # fmt: skip
