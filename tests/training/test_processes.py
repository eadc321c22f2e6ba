"""Several processes, pieces of a batch, half precision: all compute what one process computes.

Two processes are forked, with what torchrun would tell them; the slow test calls torchrun.
"""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import (
    OFTEN,
    ROUNDING,
    assert_like,
    checkpoint_of,
    ended,
    forked,
    forked_ranks,
    interrupted,
    launched,
    status,
    words_of,
)
from torch import Tensor, nn
from trainers import Rows, config, trainer_of

from data_prep.store import Store
from pipeline.config import TrainingConfig
from pipeline.data.slices import EpochSampler
from pipeline.distributed import Processes, choose_device, mean_over_processes
from pipeline.errors import InputError
from pipeline.models.config import Level
from pipeline.training import train
from pipeline.training.loop import Trainer
from pipeline.training.objective import Objective
from pipeline.training.step import TrainingStep

# ------------------------------------------------------------------ two processes


def _fitted_alone() -> None:
    """Law and prior are fitted when the processes are no group any more, or the command fails.

    So no collective is pending, and none can time out, while one process fits for minutes.
    """
    alone = train.fit

    def fit(*arguments: Any) -> Any:
        assert not torch.distributed.is_initialized()
        return alone(*arguments)

    train.fit = fit


@pytest.mark.parametrize("pieces", [1, 2])
def test_two_processes_compute_what_one_computes(work_of_all: Path, pieces: int) -> None:
    """One run in MLflow, one set of files, everything said once; σ is that of the whole batch."""
    work, run = work_of_all, f"two-{pieces}"
    words = words_of(work, run, f"--training.accumulation={pieces}")
    said, silence = ended(*forked_ranks(work, words, _fitted_alone))
    assert_like(work, "one", run)
    # What three epochs did not bring about is told once, too.
    lines = [line for line in said.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 5 and len(said.splitlines()) == len(set(said.splitlines()))
    assert silence == "" and re.search(r"on cpu(:0)? and 1 more$", lines[0])
    said, silence = ended(*forked_ranks(work, words))
    assert "nothing to do" in said and len(said.splitlines()) == 1 and silence == ""


@pytest.mark.parametrize(
    ("number", "whom"),
    [(signal.SIGTERM, 1), (signal.SIGKILL, 0), (signal.SIGKILL, 1)],
    ids=["SIGTERM to the other", "SIGKILL to the main process", "SIGKILL to the other"],
)
def test_a_signal_to_one_process_ends_both_and_one_alone_goes_on(
    work_of_all: Path, number: signal.Signals, whom: int
) -> None:
    work, run = work_of_all, f"{number.name}-{whom}"
    words = words_of(work, run, OFTEN)
    commands = interrupted(lambda: forked_ranks(work, words), work, run, number, whom)
    if number == signal.SIGTERM:
        assert [command.code for command in commands] == [143, 143]
        for command in commands:
            said = command.said.read_text()
            assert "stopped by SIGTERM, state saved" in said and "Traceback" not in said
        assert status(work, run) == ["KILLED"]
    else:  # the other waits no longer than it takes to see that this one is gone
        assert commands[whom].code == -signal.SIGKILL
        assert commands[1 - whom].code not in (0, -signal.SIGKILL)
    step = checkpoint_of(work, run).state.step
    (said,) = ended(forked(work, words_of(work, run)))
    assert f"going on from step {step}" in said
    assert_like(work, "one", run)


@pytest.mark.slow
def test_torchrun_s_two_processes_stop_together_and_one_goes_on(work_of_all: Path) -> None:
    """SIGTERM to the launcher, which passes it on."""
    work, run = work_of_all, "launched"
    words = words_of(work, run, OFTEN)
    (command,) = interrupted(lambda: [launched(work, words)], work, run, signal.SIGTERM)
    said = command.said.read_text()
    assert command.code != 0 and said.count("stopped by SIGTERM, state saved") == 2
    assert said.count("and 1 more") == 1 and status(work, run) == ["KILLED"]
    ended(forked(work, words_of(work, run)))
    assert_like(work, "one", run)


def test_a_batch_that_cannot_be_shared_ends_every_process_in_one_line(
    work_of_all: Path, tiny_store: Store, tmp_path: Path
) -> None:
    words = words_of(work_of_all, "uneven", "--training.batch_size=5")
    for command in forked_ranks(work_of_all, words):
        assert command.wait() == 2
        (line,) = command.said.read_text().splitlines()
        assert line.startswith("error: training.batch_size") and "2 processes" in line
    assert not (work_of_all / "runs/uneven").exists()
    processes = Processes("cpu")
    processes.count = 2
    for size, pieces, multiple in ((6, 2, 4), (18, 5, 10), (999, 2, 4)):  # 18 slices there are
        settings = config(training__batch_size=size, training__accumulation=pieces)
        with pytest.raises(InputError, match=f"make it a multiple of {multiple}$"):
            Trainer(settings, tiny_store, tmp_path, None, processes)


# ------------------------------------------------------------------ within one process


def test_alone_everything_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with Processes("cpu") as processes:
        module, value = nn.Linear(2, 2), torch.randn(3, requires_grad=True)
        assert processes.main and processes.count == 1 and str(processes) == "cpu"
        assert processes.wrap(module) is module
        assert processes.from_main(["x"]) == ["x"] and processes.largest([1.0, 2.0]) == [1.0, 2.0]
        assert EpochSampler(7, 7, 0, processes.rank, processes.count).rows == slice(0, 7)
        assert torch.equal(mean_over_processes(value), value)
        assert not mean_over_processes(value).requires_grad
    with pytest.raises(InputError, match=r"training\.device 'gpu'"):
        choose_device("gpu")


def _trained(store: Store, folder: Path, **changes: Any) -> tuple[Trainer, Rows]:
    """A run of one process."""
    trainer, tracker = trainer_of(store, folder, **changes), Rows()
    trainer.fit(tracker)
    return trainer, tracker


@pytest.mark.parametrize(("term", "pieces"), [("blur", 2), ("laplace", 3), ("fourier_gaussian", 3)])
def test_a_batch_in_pieces_gives_the_same_weights(
    tiny_store: Store, tmp_path: Path, term: str, pieces: int
) -> None:
    """With the scale that is the optimum of the whole batch: the weights differ by rounding."""
    changes = {"likelihood__term": term, "training__epochs": 2}
    whole, rows = _trained(tiny_store, tmp_path / "whole", **changes)
    parts, others = _trained(
        tiny_store, tmp_path / "parts", training__accumulation=pieces, **changes
    )
    weights = [trainer.steps.state()[0] for trainer in (whole, parts)]
    torch.testing.assert_close(*weights, rtol=0, atol=ROUNDING, equal_nan=True)
    for left, right in zip(rows.rows.values(), others.rows.values(), strict=True):
        assert right == pytest.approx(left, rel=1e-3)


@pytest.mark.parametrize("pieces", [1, 3])
def test_half_precision_leaves_weights_and_likelihood_in_full(
    tiny_store: Store, tmp_path: Path, pieces: int
) -> None:
    """bf16 on a CPU: weights and averages stay float32, the losses near those of float32."""
    changes = {"training__epochs": 2, "training__accumulation": pieces}
    _, exact = _trained(tiny_store, tmp_path / "float32", **changes)
    trainer, half = _trained(tiny_store, tmp_path / "bf16", training__precision="bf16", **changes)
    assert {value.dtype for value in trainer.steps.state()[0].values()} == {torch.float32}
    for row, other in zip(exact.rows.values(), half.rows.values(), strict=True):
        assert other["skipped_batches"] == 0
        for key in ("distortion", "elbo", "kernel_loss", "scale"):
            assert other[key] == pytest.approx(row[key], rel=0.02) and other[key] != row[key]


# ------------------------------------------------------------------ the step as a CUDA graph


def _stepped(device: str, *, graph: bool, precision: str = "float32") -> tuple[Tensor, list[float]]:
    """Weights and distortions of 12 steps: a warm-up, then the blur term; a level opens at 6."""
    torch.manual_seed(0)
    made = config(model__levels=[Level(4, 2), Level(8, 1, opens=0.5)])
    settings = TrainingConfig(cuda_graph=graph, precision=precision)  # type: ignore[arg-type]
    objective = Objective((1, 32, 32), made.model, made.likelihood)
    step = TrainingStep(objective, settings, Processes(device))
    random = torch.Generator().manual_seed(1)
    distortions = []
    for number in range(12):
        objective.vae.decoder.open(number / 12)
        images = torch.rand(4, 1, 32, 32, generator=random).to(step.processes.device)
        if number == 8:
            images = images * torch.nan  # skipped, and leaves nothing behind
        noise = torch.randn(4, made.model.latent_size, generator=random).to(images.device)
        told = step(images, noise, beta=0.1 * number, warm_up=number < 4)
        assert bool(told) == (number != 8)
        distortions += [told["distortion"]] if told else []
    assert (step._captured is not None) == (graph and device == "cuda")
    return torch.cat([p.detach().flatten().cpu() for p in objective.parameters()]), distortions


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_captured_step_is_the_step(precision: str) -> None:
    """Through the warm-up's end, an opening level, a moving β and a batch that is skipped."""
    torch.backends.cudnn.allow_tf32 = False
    plain, one = _stepped("cuda", graph=False, precision=precision)
    captured, other = _stepped("cuda", graph=True, precision=precision)
    # Adam's first steps are of the learning rate's size, 4e-3, whatever a gradient's rounding.
    tolerance = 1e-3 if precision == "float32" else 2e-2
    torch.testing.assert_close(captured, plain, rtol=0.0, atol=tolerance)
    torch.testing.assert_close(torch.tensor(other), torch.tensor(one), rtol=tolerance, atol=0.0)


def test_on_a_cpu_a_graph_that_is_asked_for_changes_nothing() -> None:
    assert torch.equal(_stepped("cpu", graph=False)[0], _stepped("cpu", graph=True)[0])
