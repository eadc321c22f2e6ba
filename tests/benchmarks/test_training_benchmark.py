"""benchmarks/training.py: what it compares is equal where it must be, and its sums are right."""

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributions import Normal, kl_divergence

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import peers
import terms
import training

from data_prep.store import Store
from pipeline.config import Config
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import Level, ModelConfig

CPU = torch.device("cpu")
LEVELS = (Level(4, 2), Level(8, 1))
TINY = terms.Case(32, 5, LEVELS, batch=2, gpu_batch=2, rounds=2, target=1.15)
SIZE = ModelConfig(levels=list(LEVELS)).latent_size


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["wiener", "positive_definite"])
def test_straightforward_objective_is_the_real_one(channels: int, form: Any) -> None:
    config = Config(
        model=ModelConfig(levels=list(LEVELS), width=4, max_width=8, kernel_hidden=8),
        likelihood=LikelihoodConfig(kernel_size=5, form=form),
    )
    built = terms.objectives(config, (channels, 32, 32), seed=0)
    image, noise = torch.rand(3, channels, 32, 32).double(), torch.randn(3, SIZE).double()
    losses, gradients = [], []
    for name in ("blur", "straightforward"):
        objective = built[name].double()
        loss, means = objective(image, noise, beta=0.7, warm_up=False)
        loss.backward()
        losses.append(torch.stack([loss.detach(), means["kernel_loss"], means["scale"]]))
        gradients.append({key: p.grad for key, p in objective.named_parameters()})
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=0.0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_loss_under_the_optimal_sigma_is_the_elbo_at_its_best_sigma(batch: int) -> None:
    """Against torch's densities: sums over dimensions, means over images, no σ is better."""
    peer = peers.OptimalSigmaVAE((1, 32, 32), CPU, latent=8)
    peer.network.eval()  # the same normalisation in every call
    images = torch.rand(batch, 1, 32, 32)

    def expected(factor: float) -> float:
        torch.manual_seed(3)
        posterior = peer.encode(images)
        mean = peer.decode(posterior.sample())
        sigma = factor * (images - mean).square().mean().sqrt()
        log_likelihood = Normal(mean, sigma).log_prob(images).flatten(1).sum(dim=1)
        law = Normal(posterior.mean, (0.5 * posterior.log_variance).exp())
        rate = kl_divergence(law, Normal(0.0, 1.0)).sum(dim=1)
        return (rate - log_likelihood).mean().item()

    torch.manual_seed(3)
    found = peer.loss(images)
    assert found.item() == pytest.approx(expected(1.0), rel=1e-5)
    assert found.item() < min(expected(0.95), expected(1.05))
    found.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in peer.network.parameters())


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    content = {
        "model": {
            "levels": [asdict(level) for level in LEVELS], "width": 4, "max_width": 8,
            "kernel_hidden": 8,
        },
        "likelihood": {"kernel_size": 5, "warmup_epochs": 1},
        "training": {"batch_size": 4},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


def test_all_parts_from_end_to_end(
    tiny_store: Store, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One peer is enough here, and MONAI's import takes longer than all else.
    classic = {peers.ClassicVAE.name: lambda: peers.ClassicVAE((1, 32, 32), CPU, latent=8)}
    monkeypatch.setattr(training, "peers", lambda *_: classic)
    monkeypatch.setattr(training, "CASES", (TINY,))
    monkeypatch.setattr(training, "LARGE_BATCH", 6)
    for name in ("measure_throughput", "measure_reading"):
        monkeypatch.setattr(training, name, partial(getattr(training, name), rounds=3))
    words = ["--store", str(tiny_store.path), "--config", str(config_file), "--minutes", "0.005"]
    assert training.main([*words, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/training.json").read_text())
    assert set(training.PARTS) < set(found)
    names = [run["name"] for run in found["quality"]["runs"]]
    assert names == [peers.PROJECT, peers.PROJECT_SHORT, peers.ClassicVAE.name]
    assert all(run["curve"] and run["steps"] for run in found["quality"]["runs"])
    assert [row["name"] for row in found["throughput"]] == [peers.PROJECT, peers.ClassicVAE.name]
    assert all(row["multiply_adds"] > 1e4 for row in found["throughput"])
    assert found["reading"]["ratio"]["reading"]["median"] > 0
    assert found["store"]["digest"] == tiny_store.digest
    text = (tmp_path / "out/training.md").read_text()
    assert "python benchmarks/training.py --store" in text
    assert "pythae VAE is left out" in text and "≤ 1.15" in text
    assert (tmp_path / "out/time_to_quality.png").read_bytes()[:4] == b"\x89PNG"
