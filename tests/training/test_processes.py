"""Several processes, pieces of a batch, half precision: all compute what one process computes.

Two processes are forked, with what torchrun would tell them; the slow tests call torchrun.
"""

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import (
    OFTEN,
    Command,
    checkpoint_of,
    files_of,
    forked,
    forked_ranks,
    history,
    interrupted,
    logged_images,
    spawned,
    status,
    words_of,
    work_with_a_run,
)
from torch import Tensor, nn
from trainers import FixedMonitor, Rows, config

from data_prep.store import Store
from pipeline.data.slices import EpochSampler
from pipeline.distributed import Processes
from pipeline.errors import InputError
from pipeline.training import train
from pipeline.training.checkpoint import latest_checkpoint
from pipeline.training.loop import Trainer

# ------------------------------------------------------------------ two processes


@pytest.fixture(scope="module")
def work_of_all(
    tmp_path_factory: pytest.TempPathFactory, store_writer: Callable[..., Store]
) -> Path:
    """A work folder with a store and the run `one` of one process, 3 epochs of 6 steps."""
    import accelerate  # noqa: F401  # once, not in every forked process

    return work_with_a_run(tmp_path_factory.mktemp("processes"), store_writer, 4, "one")


def _ended(commands: list[Command]) -> list[str]:
    """What commands that must succeed have said."""
    codes = [command.wait() for command in commands]
    said = [command.said.read_text() for command in commands]
    assert codes == [0] * len(commands), said
    return said


def _assert_close(work: Path, one: str, two: str, tolerance: float = 2e-5) -> None:
    """Weights, averaged ones included, and all that was tracked, are the same but for rounding."""
    ends = [checkpoint_of(work, run) for run in (one, two)]
    assert ends[0].state.step == ends[1].state.step
    for name, value in ends[0].weights.items():
        torch.testing.assert_close(
            ends[1].weights[name], value, rtol=0, atol=tolerance, equal_nan=True
        )
    tracked = [history(work, run) for run in (one, two)]
    assert [row[:2] for row in tracked[0]] == [row[:2] for row in tracked[1]]
    for left, right in zip(*tracked, strict=True):
        assert right[2] == pytest.approx(left[2], rel=2e-3, abs=1e-4), left[:2]


def _fitted_alone() -> None:
    """Law and prior are fitted when the processes are no group any more, or the command fails.

    So no collective is pending, and none can time out, while one process fits for minutes.
    """
    alone = train.fit

    def fit(*arguments: Any) -> Any:
        assert not torch.distributed.is_initialized()
        return alone(*arguments)

    train.fit = fit


def test_two_processes_compute_what_one_computes(work_of_all: Path) -> None:
    """One run in MLflow, one set of files, everything said once."""
    work = work_of_all
    said, silence = _ended(forked_ranks(work, words_of(work, "two"), 2, _fitted_alone))
    _assert_close(work, "one", "two")
    assert status(work, "two") == ["FINISHED"]
    assert logged_images(work, "two") == logged_images(work, "one")
    assert files_of(work, "two") == files_of(work, "one")
    # What three epochs did not bring about is told once, too.
    lines = [line for line in said.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 5 and len(said.splitlines()) == len(set(said.splitlines()))
    assert silence == ""
    assert re.search(r"on cpu(:0)? and 1 more$", lines[0])


def test_a_finished_run_is_left_alone_by_all_processes(work_of_all: Path) -> None:
    said, silence = _ended(forked_ranks(work_of_all, words_of(work_of_all, "one"), 2))
    assert "nothing to do" in said and len(said.splitlines()) == 1 and silence == ""


def test_two_processes_with_two_pieces_each_compute_what_one_computes(work_of_all: Path) -> None:
    """With the scale that is the optimum of the whole batch."""
    work = work_of_all
    words = words_of(work, "four-pieces", "--training.accumulation=2")
    _ended(forked_ranks(work, words, 2))
    _assert_close(work, "one", "four-pieces")


@pytest.mark.parametrize("whom", [0, 1], ids=["the main process", "the other"])
def test_a_signal_to_one_process_stops_both_at_the_same_step(work_of_all: Path, whom: int) -> None:
    """And one process alone can go on."""
    work, run = work_of_all, f"stopped-{whom}"
    words = words_of(work, run, OFTEN)
    commands = interrupted(lambda: forked_ranks(work, words, 2), work, run, signal.SIGTERM, whom)
    assert [command.code for command in commands] == [143, 143]
    for command in commands:
        said = command.said.read_text()
        assert "stopped by SIGTERM, state saved" in said and "Traceback" not in said
    assert status(work, run) == ["KILLED"]
    step = checkpoint_of(work, run).state.step
    last = forked(work, words_of(work, run))
    assert f"going on from step {step}" in _ended([last])[0]
    assert status(work, run) == ["FINISHED"]
    _assert_close(work, "one", run)
    assert files_of(work, run) == files_of(work, "one")


@pytest.mark.parametrize("whom", [0, 1], ids=["the main process", "the other"])
def test_a_killed_process_ends_both_and_the_run_goes_on(work_of_all: Path, whom: int) -> None:
    """The other one waits for it no longer than it takes to see that it is gone."""
    work, run = work_of_all, f"killed-{whom}"
    words = words_of(work, run, OFTEN)
    commands = interrupted(lambda: forked_ranks(work, words, 2), work, run, signal.SIGKILL, whom)
    assert commands[whom].code == -signal.SIGKILL
    assert commands[1 - whom].code not in (0, -signal.SIGKILL)
    _ended([forked(work, words_of(work, run))])
    assert status(work, run) == ["FINISHED"]
    _assert_close(work, "one", run)


@pytest.mark.parametrize(
    "words",
    [("--training.batch_size=5",), ("--training.batch_size=4", "--training.accumulation=4")],
    ids=["processes", "pieces"],
)
def test_a_batch_that_cannot_be_shared_ends_every_process_in_one_line(
    work_of_all: Path, words: tuple[str, ...]
) -> None:
    work = work_of_all
    commands = forked_ranks(work, words_of(work, "uneven", *words), 2)
    for command in commands:
        assert command.wait() == 2
        (line,) = command.said.read_text().splitlines()
        assert line.startswith("error: training.batch_size") and "2 processes" in line
    assert not (work / "runs/uneven").exists()


LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
def test_torchrun_s_two_processes_stop_together_and_one_goes_on(work_of_all: Path) -> None:
    """SIGTERM to the launcher, which passes it on."""
    work, run = work_of_all, "launched"
    words = words_of(work, run, OFTEN)
    (command,) = interrupted(lambda: [spawned(work, words, LAUNCHER)], work, run, signal.SIGTERM)
    assert command.code != 0
    said = command.said.read_text()
    assert said.count("stopped by SIGTERM, state saved") == 2
    assert said.count("and 1 more") == 1
    assert status(work, run) == ["KILLED"]
    _ended([forked(work, words_of(work, run))])
    _assert_close(work, "one", run)


# ------------------------------------------------------------------ within one process


def test_alone_everything_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with Processes("cpu") as processes:
        module, value = nn.Linear(2, 2), torch.randn(3, requires_grad=True)
        assert processes.main and processes.count == 1 and str(processes) == "cpu"
        assert processes.wrap(module) is module
        assert processes.from_main(["x"]) == ["x"] and processes.largest([1.0, 2.0]) == [1.0, 2.0]
        assert EpochSampler(7, 7, 0, processes.rank, processes.count).rows == slice(0, 7)
        assert torch.equal(processes.mean(value), value)
        assert not processes.mean(value).requires_grad
        with processes.unsynchronised(module):
            pass


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "multiple"), [(5, 1, 2), (6, 2, 4), (18, 5, 10), (999, 2, 4)]
)
def test_a_batch_size_that_cannot_be_shared_is_refused_by_name(
    tiny_store: Store, tmp_path: Path, batch_size: int, accumulation: int, multiple: int
) -> None:
    """999: no more than the 18 slices there are."""
    processes = Processes("cpu")
    processes.count = 2
    changes = {"training__batch_size": batch_size, "training__accumulation": accumulation}
    with pytest.raises(InputError, match=r"training\.batch_size") as error:
        Trainer(config(**changes), tiny_store, tmp_path, FixedMonitor(), processes)
    assert str(error.value).endswith(f"make it a multiple of {multiple}")


def _trained(store: Store, folder: Path, **changes: Any) -> tuple[Trainer, Rows]:
    """A run of one process."""
    trainer, tracker = Trainer(config(**changes), store, folder, FixedMonitor()), Rows()
    trainer.fit(tracker)
    return trainer, tracker


@pytest.mark.parametrize(
    ("term", "pieces"), [("blur", 2), ("gaussian", 6), ("laplace", 3), ("fourier_gaussian", 3)]
)
def test_a_batch_in_pieces_gives_the_same_weights(
    tiny_store: Store, tmp_path: Path, term: str, pieces: int
) -> None:
    """With the scale that is the optimum of the whole batch: the weights differ by rounding."""
    changes = {"likelihood__term": term}
    whole, rows = _trained(tiny_store, tmp_path / "whole", **changes)
    parts, found = _trained(
        tiny_store, tmp_path / "parts", training__accumulation=pieces, **changes
    )
    for left, right in zip(
        whole.steps.state()[0].values(), parts.steps.state()[0].values(), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=2e-5, equal_nan=True)
    for left, right in zip(rows.rows.values(), found.rows.values(), strict=True):
        assert right == pytest.approx(left, rel=1e-3)


def test_pieces_in_half_precision_learn_as_the_whole_batch_does(
    tiny_store: Store, tmp_path: Path
) -> None:
    changes = {"training__precision": "bf16"}
    _, rows = _trained(tiny_store, tmp_path / "whole", **changes)
    parts, found = _trained(tiny_store, tmp_path / "parts", training__accumulation=3, **changes)
    assert all(value.isfinite().all() for value in parts.objective.parameters())
    for left, right in zip(rows.rows.values(), found.rows.values(), strict=True):
        assert right["skipped_batches"] == 0
        assert right["distortion"] == pytest.approx(left["distortion"], rel=0.02)


def test_half_precision_leaves_likelihood_and_ffts_in_full(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 on a CPU: weights and averages stay float32, the losses near those of float32."""
    seen: dict[str, set[torch.dtype]] = {"fft": set(), "convolution": set()}
    transform, convolve = torch.fft.rfft2, nn.Conv2d._conv_forward

    def spied_transform(values: Tensor, *rest: Any, **options: Any) -> Tensor:
        found = transform(values, *rest, **options)
        seen["fft"] |= {values.dtype, found.dtype}
        return found

    def spied_convolution(self: nn.Conv2d, *rest: Any) -> Tensor:
        found = convolve(self, *rest)
        if self.training:
            seen["convolution"].add(found.dtype)
        return found

    _, exact = _trained(tiny_store, tmp_path / "float32", training__epochs=2)
    monkeypatch.setattr(torch.fft, "rfft2", spied_transform)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", spied_convolution)
    trainer, rows = _trained(
        tiny_store, tmp_path / "bf16", training__precision="bf16", training__epochs=2
    )
    assert seen["fft"] == {torch.float32, torch.complex64}
    assert torch.bfloat16 in seen["convolution"]
    weights, _ = trainer.steps.state()
    assert {value.dtype for value in weights.values()} == {torch.float32}
    for row, found in zip(exact.rows.values(), rows.rows.values(), strict=True):
        assert found["skipped_batches"] == 0
        for key in ("distortion", "elbo", "kernel_loss", "scale"):
            assert found[key] == pytest.approx(row[key], rel=0.02), key
            assert found[key] != row[key]


def test_compilation_is_of_the_vae_where_asked_for(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *_, **__: compiled.append(self))
    Trainer(config(), tiny_store, tmp_path, FixedMonitor())
    assert not compiled
    trainer = Trainer(config(training__compile=True), tiny_store, tmp_path, FixedMonitor())
    assert [id(module) for module in compiled] == [id(trainer.objective.vae)]
    trainer.fit(Rows())
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert found is not None and found.weights.keys() == trainer.steps.state()[0].keys()
    assert not any("_orig_mod" in name for name in found.weights)
