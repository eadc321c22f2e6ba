"""benchmarks/training.py: what it compares is equal where it must be, and its sums are right."""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.distributions import Normal, kl_divergence

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import peers
import terms
import training
from measure import Spread, alternate, processor, ratio
from quality import Point, Run, Schedule, Scorer, best, compare
from report import COLOURS

from data_prep.store import Store
from pipeline.config import Config
from pipeline.data.slices import SliceDataset
from pipeline.distributed import Processes
from pipeline.errors import InputError
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import Level, ModelConfig
from pipeline.models.vae import VAE
from pipeline.training.monitor import ValidationMonitor

CPU = torch.device("cpu")
LEVELS = (Level(4, 2), Level(8, 1))
TINY = terms.Case(32, 5, LEVELS, batch=2, gpu_batch=2, rounds=2, target=1.15)
SIZE = ModelConfig(levels=list(LEVELS)).latent_size
CHANNELS = (8, 8, 8, 8)


def _images(store: Store, count: int = 8) -> Tensor:
    return SliceDataset(store, store.subjects("train")).__getitems__(range(count))


# The blur term


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


def test_a_difference_is_told() -> None:
    config = terms.configuration(TINY)
    built = terms.objectives(config, (1, 32, 32), seed=0)
    image, noise = torch.rand(2, 1, 32, 32), torch.randn(2, SIZE)
    assert terms.check_equal(built["blur"], built["straightforward"], image, noise) < 1e-4
    assert built["blur"].term.scale.running.isnan(), "a check leaves no trace"
    with torch.no_grad():
        built["straightforward"].kernel_network.body[-1].bias.add_(torch.randn(25))
    with pytest.raises(AssertionError):
        terms.check_equal(built["blur"], built["straightforward"], image, noise)


# Timing


def test_actions_take_turns_and_ratios_are_of_rounds() -> None:
    order: list[str] = []
    actions = {name: lambda name=name: order.append(name) for name in "ab"}
    times = alternate(actions, rounds=3, device=CPU, warm_up=1)
    assert order == list("abababab")
    assert {len(values) for values in times.values()} == {3}
    assert len(alternate(actions, rounds=9, device=CPU, budget=0.0, least=4)["a"]) == 4
    slow = {"one": [1.0, 2.0, 10.0], "two": [2.0, 4.0, 20.0]}
    assert ratio(slow, "two", to="one") == Spread(median=2.0, low=2.0, high=2.0)


def test_processor_is_named(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags : x\nmodel name\t: Some CPU: fast\n")
    assert processor(tmp_path / "cpuinfo") == "Some CPU: fast"
    assert processor(tmp_path / "none")


def test_cases_are_of_every_side_with_levels_that_fit() -> None:
    assert [(case.side, case.target) for case in terms.CASES] == [(64, 1.1), (128, 1.1), (256, 1.1)]
    assert list(terms.CASES[0].levels) == ModelConfig().levels
    for case in terms.CASES:
        config = terms.configuration(case)
        assert config.model.sides(case.side)[0] == case.side // 2
        assert all(level.opens == 0 for level in case.levels)


# The peers


def _monai() -> peers.Contestant:
    pytest.importorskip("einops")
    return peers.MonaiAutoencoderKL((1, 32, 32), CPU, CHANNELS)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(_monai, marks=pytest.mark.slow),  # for MONAI's import
        lambda: peers.ClassicVAE((1, 32, 32), CPU, latent=8),
        lambda: peers.OptimalSigmaVAE((1, 32, 32), CPU, latent=8),
        lambda: peers.Project((1, 32, 32), Processes("cpu"), terms.configuration(TINY)),
    ],
    ids=["monai", "classic", "optimal sigma", "project"],
)
def test_contestants_learn_and_reconstruct(
    build: Callable[[], peers.Contestant], tiny_store: Store
) -> None:
    contestant, batch = build(), _images(tiny_store)
    losses = [contestant.step(batch).item() for _ in range(40)]
    assert min(losses[-3:]) < min(losses[:3])
    reconstruction, rate = contestant.reconstruct(batch)
    assert reconstruction.shape == batch.shape
    assert reconstruction.min() >= 0 and reconstruction.max() <= 1
    assert rate.shape == (8,) and (rate >= 0).all()
    assert contestant.parameters > 0 and contestant.notes


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


def test_the_rate_that_is_told_is_that_of_a_draw_and_the_images_that_of_the_means() -> None:
    project = peers.Project((1, 32, 32), Processes("cpu"), terms.configuration(TINY))
    images, vae = torch.rand(4, 1, 32, 32), project.objective.vae
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        found, rate = project.reconstruct(images)
        means = vae.infer(images)
        mean_rate = torch.stack([_infer(vae, images, seed) for seed in range(50)]).mean(dim=0)
    assert torch.equal(found, means.reconstruction)
    assert torch.equal(rate, _infer(vae, images, 0))
    torch.testing.assert_close(rate, mean_rate, rtol=0.2, atol=0.0)


def _infer(vae: VAE, images: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return vae.infer(images, vae.prior_latents(len(images), generator)).posterior.rate()


@pytest.mark.slow  # a step takes a second
def test_pythae_learns_and_reconstructs() -> None:
    pytest.importorskip("pythae")
    contestant = peers.PythaeVAE((1, 64, 64), CPU)
    batch = torch.zeros(2, 1, 64, 64)
    losses = [contestant.step(batch).item() for _ in range(3)]
    assert losses[-1] < losses[0]
    reconstruction, rate = contestant.reconstruct(batch)
    assert reconstruction.shape == batch.shape and rate.shape == (2,)


def test_what_peers_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert len(peers.peers((1, 64, 64), CPU)) == 4 < len(COLOURS), "every curve has a colour"
    assert peers.PythaeVAE.name not in peers.peers((1, 32, 32), CPU)
    with pytest.raises(InputError, match="channels must be multiples"):
        peers.peers((1, 64, 64), CPU, monai_channels=(16, 24))
    for missing in ("einops", "pythae"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, m=missing: name != m or None)
        with pytest.raises(InputError, match=f"{missing} is not installed: make bench installs it"):
            peers.peers((1, 64, 64), CPU)


# Time to quality


def _curve(*rows: tuple[float, float, float, float]) -> list[Point]:
    """Points from (seconds, LPIPS, PSNR, high-frequency ratio)."""
    return [
        Point(seconds=s, step=0, lpips_alex=a, psnr=p, high_frequency_ratio=h, rate=0.0)
        for s, a, p, h in rows
    ]


def test_noise_has_no_sharpness() -> None:
    curve = _curve((5, 0.5, 10, 0.99), (10, 0.4, 18, 0.02), (20, 0.3, 19, 0.05))
    assert best(curve, "psnr") == best(curve, "high_frequency_ratio") == curve[2]
    assert best([], "high_frequency_ratio") is None
    near = _curve((5, 0.5, 19.6, 1.5), (10, 0.5, 20, 0.8))
    assert best(near, "high_frequency_ratio") == near[1], "nearest 1, from either side"
    assert best(near, "lpips_alex") == near[0]


def test_comparison_is_with_the_best_peer_of_each_metric() -> None:
    mine = _curve((5, 0.6, 17, 0.1), (10, 0.3, 19, 0.3), (40, 0.2, 22, 0.4))
    runs = [
        Run(peers.PROJECT, "", 1, mine),
        Run(peers.PROJECT_SHORT, "", 1, _curve((3, 0.1, 30, 1.0))),
        Run("a", "", 1, _curve((5, 0.5, 18, 0.05), (100, 0.3, 20, 0.06))),
        Run("b", "", 1, _curve((5, 0.7, 12, 0.9), (90, 0.4, 19, 0.2))),
    ]
    found = compare(runs, seconds=100.0)
    assert {name: (row.get("peer"), row["seconds"]) for name, row in found.items()} == {
        "lpips_alex": ("a", 10),
        "psnr": ("a", 40),
        "high_frequency_ratio": ("b", 10),
        "all": (None, 40),
    }
    assert [row["within_a_fifth"] for row in found.values()] == [True, False, True, False]
    assert found["psnr"]["peer_seconds"] == 100
    runs[0].curve = mine[:1]
    found = compare(runs, seconds=100.0)
    assert found["psnr"]["seconds"] is None and not found["all"]["within_a_fifth"]


def test_scores_are_due_sooner_in_the_first_minute() -> None:
    schedule = Schedule()
    assert [s for s in range(125) if schedule.due(s)] == [5, 10, 20, 30, 40, 50, 60, 80, 100, 120]
    late = Schedule()
    assert [late.due(s) for s in (31.0, 35.0, 41.0)] == [True, False, True]


def test_scored_slices_are_those_of_the_validation_monitor(store_writer: Any, work: Path) -> None:
    store = store_writer(work, splits=("train", "validation", "validation"), slices=20)
    scorer, monitor = Scorer(store, CPU), ValidationMonitor(store, CPU)
    assert all(
        torch.equal(one, other)
        for one, other in zip(scorer.subjects, monitor._subjects, strict=True)
    )
    scores = scorer(lambda images: (images, torch.ones(len(images))))
    assert scores == {
        "lpips_alex": 0.0, "psnr": 100.0, "high_frequency_ratio": 1.0, "rate": 1.0
    }  # fmt: skip
    assert scorer(lambda images: (images / 0, torch.ones(len(images)))) is None


# The command


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


def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, tiny_store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text("model: {widht: 4}\n")
    commands = {
        "no prepared store": ["--store", tmp_path / "none"],
        "none.yaml can't be read": ["--store", tiny_store.path, "--config", tmp_path / "none.yaml"],
        "widht": ["--store", tiny_store.path, "--config", tmp_path / "bad.yaml"],
        "--minutes": ["--store", tiny_store.path, "--minutes", "0"],
        "training.device": ["--store", tiny_store.path, "--device", "nonsense"],
    }
    for said, words in commands.items():
        assert training.main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert said in error


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
