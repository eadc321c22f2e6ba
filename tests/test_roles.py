"""Who may see whom (docs/method.md): each split's pixels change what is made of them, no more."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import yaml
from tiny import TINY

from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.evaluation import figures, scoring
from pipeline.metrics.perceptual import WeightsNotFound
from pipeline.training.checkpoint import find_checkpoint

SPLITS = ("train", "train", "train", "validation", "validation", "test", "test")
CONFIG = {
    **TINY,
    # The checkpoint of the last epoch is the only one with a score, and so the best.
    "training": {**TINY["training"], "epochs": 2, "validate_every": 2},
    "tracking": {"enabled": False},
}

# What a change of a split's pixels changes. Whatever is made of the weights changes with them.
MAY_SEE = {
    "fit": {"train"},  # encoder, decoder, term, kernel network; prior of samples
    "calibrate": {"train", "validation"},  # law of the residuals and its factors
    "choose": {"train", "validation"},  # the score by which the best checkpoint is chosen
    "score": {"train", "test"},
}


@dataclass(frozen=True)
class Made:
    """What train and evaluate made on one store, by who may see whom."""

    fit: list[Any]
    calibrate: bytes
    choose: float
    score: list[float]
    kept: bool
    """Whether evaluate left weights, law and prior as they were."""


def _made(run: Path) -> Made:
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert main(["evaluate", "--run", run.name]) == 0
    kept = all(path.read_bytes() == content for path, content in files.items())
    checkpoint = find_checkpoint(run / "checkpoints", "best")
    prior = safetensors.torch.load_file(run / "fits/prior.safetensors")
    tensors = {**checkpoint.weights, **prior}
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    keys = ("psnr", "ssim", "rate", "calibration_coverage_90")
    return Made(
        [(name, tensors[name].tolist()) for name in sorted(tensors)],
        (run / "fits/residual.safetensors").read_bytes(),
        checkpoint.state.best["psnr"],
        [metrics[key]["mean"] for key in keys],
        kept,
    )


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, store_writer: Callable[..., Store]
) -> dict[str, Made]:
    """What is made of the store as it is (""), and of it with one split's pixels changed."""

    def nowhere(*_: object) -> Any:
        raise WeightsNotFound("not here")

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "PerceptualDistance", nowhere)  # quicker without
        patch.setattr(scoring, "inception_weights", nowhere)
        patch.setattr(figures, "run_figures", lambda *_: {})
        for split in ("", "train", "validation", "test"):
            work = tmp_path_factory.mktemp("roles").resolve() / "work"
            patch.setenv("WORK", str(work))
            store_writer(work, splits=SPLITS, dimmed=split)
            (work / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
            assert main(["train", "--config", str(work / "tiny.yaml")]) == 0
            found[split] = _made(work / "runs/tiny")
    return found


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("stage", MAY_SEE)
def test_a_stage_sees_whom_it_may_and_nobody_else(
    made: dict[str, Made], stage: str, split: str
) -> None:
    changed = getattr(made[split], stage) != getattr(made[""], stage)
    assert changed == (split in MAY_SEE[stage])


def test_evaluate_writes_into_no_other_stage_s_folder(made: dict[str, Made]) -> None:
    assert all(run.kept for run in made.values())
