"""benchmarks/accelerator.py: one command, every part, on a CPU as on a GPU."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import accelerator
import agreement
import speed
from accelerator_report import markdown
from quality import training_slices

from data_prep.store import Store
from pipeline.config import Config
from pipeline.distributed import Processes
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import Level, ModelConfig

CPU = torch.device("cpu")
TINY = Config(
    model=ModelConfig(levels=[Level(4, 2), Level(8, 1)], width=4, max_width=8, kernel_hidden=8),
    likelihood=LikelihoodConfig(kernel_size=5, warmup_epochs=1),
)


def test_float32_gradients_agree_with_float64_and_half_precision_is_told(tiny_store: Store) -> None:
    slices = training_slices(tiny_store, 8)
    found = agreement.measure_agreement(TINY, slices, CPU, seed=0, batch=4)
    assert found["agrees"]
    exact, half = found["errors"]["CPU, float32"], found["errors"]["device, bf16"]
    for step in "AB":
        assert 0 < exact[step] < agreement.TOLERANCE
        assert 10 * exact[step] < half[step] < 1


def test_an_fft_in_half_precision_is_an_error(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.blur import spectrum

    outside = spectrum.transfer_of

    def within(kernel: Any, shape: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            torch.fft.rfft2(torch.ones(4, 4))
        return outside(kernel, shape)

    monkeypatch.setattr("pipeline.training.objective.transfer_of", within)
    with pytest.raises(AssertionError, match="FFTs ran as"):
        agreement.measure_agreement(TINY, training_slices(tiny_store, 4), CPU, 0, batch=2)


def test_on_one_processor_two_runs_end_with_the_same_bits(tiny_store: Store) -> None:
    config = replace(TINY, training=replace(TINY.training, batch_size=4))
    rows = agreement.measure_repeat(
        config, training_slices(tiny_store, 4), Processes("cpu"), seed=0, steps=3
    )
    assert [row["deterministic"] for row in rows] == [False, True]
    assert all(row["equal"] and row["largest_difference"] == 0 for row in rows)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_command_from_end_to_end(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "all_levels_open", lambda _: TINY)
    monkeypatch.setattr(accelerator, "all_levels_open", lambda _: TINY)
    monkeypatch.setattr(accelerator, "load_config", lambda _: TINY)
    monkeypatch.setattr(accelerator, "SIZES", (speed.Size(32, "hcp64.yaml", (2,), 2),))
    monkeypatch.setattr(accelerator, "CASES", ())
    monkeypatch.setattr(accelerator.importlib.util, "find_spec", lambda name: name == "matplotlib")
    words = ["--minutes", "0.02", "--device", "cpu", "--store", str(tiny_store.path),
             "--rounds", "2", "--steps", "2", "--batch", "2",
             "--out", str(tmp_path / "out")]  # fmt: skip
    assert accelerator.main(words) == 0
    found = json.loads((tmp_path / "out/accelerator.json").read_text())
    assert set(accelerator.PARTS) < set(found) and found["store"]["digest"] == tiny_store.digest
    (run,) = found["training"]["runs"]
    assert run["curve"] and run["curve"][-1]["psnr"] > 0
    assert run["curve"][-1]["lpips_alex"] is None
    text = (tmp_path / "out/accelerator.md").read_text()
    assert markdown(found) == text
    assert "within 0.001: yes" in text and "python benchmarks/accelerator.py --minutes" in text
    assert (tmp_path / "out/accelerator.png").read_bytes()[:4] == b"\x89PNG"
