"""The law of the residuals: fitted to validation families, calibrated on those it has not seen."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data_prep.common.progress import Reporter
from data_prep.store import Store
from pipeline.config import Config, load_config
from pipeline.evaluation.run import load_trained_run
from pipeline.fits import residual
from pipeline.fits.residual import FEWEST, LEVEL, factors_of, fit_residual
from pipeline.losses.residual import ResidualLaw
from pipeline.models.vae import VAE
from pipeline.training.checkpoint import find_checkpoint
from pipeline.training.loop import load_objective

SIDE = 16


def _law(vae: VAE, config: Config, store: Store) -> dict[str, Tensor]:
    with Reporter() as reporter:
        return fit_residual(vae, config, store, reporter).state_dict()


def test_it_depends_on_the_validation_subjects_alone_where_there_are_some(
    tiny_run: Path, store_writer: Callable[..., Store], tmp_path: Path
) -> None:
    """The same images in other roles: training and test subjects may change theirs."""
    config = load_config(tiny_run / "config.yaml")
    vae = load_objective(find_checkpoint(tiny_run / "checkpoints", "best"), config).vae

    def law(*splits: str) -> dict[str, Tensor]:
        return _law(vae, config, store_writer(tmp_path, "-".join(splits), splits=splits))

    first = law("train", "test", "validation", "validation")
    swapped = law("test", "train", "validation", "validation")
    assert all(torch.equal(value, swapped[name]) for name, value in first.items())
    others = law("validation", "train", "test", "validation")
    assert any(not torch.equal(value, others[name]) for name, value in first.items())
    without = law("train", "train", "test", "test")  # training subjects serve, then
    assert not torch.equal(without["factors"], first["factors"])


class Families:
    """Slices of families, (n,1,16,16), of their own brightness, and a model's errors on them."""

    def __init__(self, count: int, spread: float, slices: int = 12, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.families = torch.arange(count).repeat_interleave(slices)
        size = (spread * torch.randn(count, generator=random)).exp()[self.families]
        shape = (len(self.families), 1, SIDE, SIDE)
        coarse = torch.rand((len(self.families), 1, 4, 4), generator=random)
        self.reconstructions = 0.2 + 0.6 * torch.nn.functional.interpolate(coarse, (SIDE, SIDE))
        deviation = 0.05 * size[:, None, None, None] * (0.5 + self.reconstructions)
        self.images = self.reconstructions + deviation * torch.randn(shape, generator=random)
        self.images = self.images.clamp_min(1e-3)

    def pairs(self, *_: object) -> tuple[Tensor, Tensor, Tensor]:
        return self.images, self.reconstructions, self.families


class Model(torch.nn.Module):
    """As much of a VAE as the fit of simulated families asks for."""

    image_shape = (1, SIDE, SIDE)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))


def _fitted(
    families: Families, store: Store, monkeypatch: pytest.MonkeyPatch, steps: int
) -> ResidualLaw:
    config = Config()
    object.__setattr__(config.likelihood, "residual_steps", steps)
    monkeypatch.setattr(residual, "_pairs", families.pairs)
    with Reporter() as reporter:
        return fit_residual(Model(), config, store, reporter)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_factors_lack_is_told_by_laws_that_have_not_seen_a_family(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Every family is once in a fold. The law that is kept has seen, and is judged on, them all."""
    families = Families(count, 0.0)
    families.images = (1.0 + families.families)[:, None, None, None].expand(-1, 1, SIDE, SIDE)
    families.reconstructions = torch.zeros_like(families.images)
    seen: dict[ResidualLaw, set[int]] = {}
    judged: dict[ResidualLaw, set[int]] = {}

    def learn(law: ResidualLaw, drawn: Callable[[int], tuple[Tensor, Tensor]], _: int) -> None:
        seen[law] = {int(v) for step in range(30) for v in drawn(step)[0][:, 0, 0, 0]}

    def needed(law: ResidualLaw, images: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        """A law of every family needs 0.5; of two parts 1, and half as much again where unseen."""
        family = int(images[0, 0, 0, 0])
        judged.setdefault(law, set()).add(family)
        least = 0.5 if len(seen[law]) == count else 1.5 - 0.5 * (family in seen[law])
        return torch.full((FEWEST,), least), torch.full((FEWEST,), 2 * least)

    monkeypatch.setattr(residual, "learn", learn)
    monkeypatch.setattr(residual, "_needed", needed)
    law = _fitted(families, tiny_store, monkeypatch, 1)
    everyone = set(range(1, count + 1))
    assert seen[law] == everyone and all(part == everyone for part in judged.values())
    unseen = [everyone - part for key, part in seen.items() if key is not law]
    assert sorted(name for part in unseen for name in part) == sorted(everyone) * (count > 1)
    lacking = 1.5 if count > 1 else 1.0
    assert law.factors.tolist() == pytest.approx([0.5 * lacking, lacking])


def test_its_intervals_cover_families_that_it_has_not_seen(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten families whose errors differ by a fifth: 90% of others' pixels, and variance 1."""
    law = _fitted(Families(10, 0.2), tiny_store, monkeypatch, 40)
    others = Families(60, 0.2, seed=1)
    error = others.images - others.reconstructions
    found = law(others.reconstructions)
    inside = (error.abs() <= found.half_width(LEVEL, error.shape)).double().mean().item()
    assert inside == pytest.approx(LEVEL, abs=0.03)
    assert found.whiten(error).square().mean().item() == pytest.approx(1, abs=0.2)


def test_a_few_pixels_that_are_far_off_do_not_decide_for_the_others(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bright where the reconstruction is black: 90% of the others' pixels, and variance 1."""

    def framed(families: Families) -> Families:
        for images in (families.images, families.reconstructions):
            images[..., :4] = images[..., -4:] = 0.0
        return families

    families = framed(Families(10, 0.2))
    families.images[::12, :, 6:9, :2] = 0.9
    law = _fitted(families, tiny_store, monkeypatch, 100)
    others = framed(Families(30, 0.2, seed=1))
    error = others.images - others.reconstructions
    found = law(others.reconstructions)
    inside = (error.abs() <= found.half_width(LEVEL, error.shape))[..., 4:-4]
    assert inside.double().mean().item() == pytest.approx(LEVEL, abs=0.03)
    assert found.whiten(error)[..., 4:-4].square().mean().item() == pytest.approx(1, abs=0.2)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), min_size=1, max_size=6),
    st.floats(0.05, 0.95),
)
def test_a_factor_holds_its_share_of_pixels_on_average_over_families(
    sizes: list[tuple[int, int]], level: float
) -> None:
    """However many pixels each has. The least such factor, and of few pixels one for both."""
    random = np.random.default_rng(len(sizes))
    needed = [tuple(torch.from_numpy(random.random(n) + 0.2) for n in pair) for pair in sizes]
    within, edge = factors_of(needed, level).double().tolist()  # type: ignore[arg-type]
    assert within == edge
    pooled = [np.concatenate(pair) for pair in needed]
    assert np.mean([np.mean(part <= within + 1e-6) for part in pooled]) >= level - 1e-9
    assert np.mean([np.mean(part < within - 1e-6) for part in pooled]) <= level


def test_factors_within_and_at_the_edge_are_apart_and_no_pixels_leave_them_at_one() -> None:
    many = torch.linspace(0, 1, 10 * FEWEST)
    assert factors_of([(many, 2 * many)], 0.9).tolist() == pytest.approx([0.9, 1.8], rel=1e-3)
    few = [(many, 2 * many[:: len(many) // 10])]
    assert factors_of(few, 0.9).tolist() == pytest.approx([0.9, 0.9], rel=1e-2)
    assert factors_of([(many[:0], many[:0])], 0.9).tolist() == [1, 1]
    assert factors_of([(0.01 * many, 0.01 * many)], 0.9).tolist() == pytest.approx([0.1, 0.1])
    assert not math.isnan(factors_of([(many, many[:0]), (many[:0], many)], 0.9)[0])


def test_subjects_that_it_was_fitted_to_are_not_scored_under_it(tiny_run: Path) -> None:
    checkpoint = find_checkpoint(tiny_run / "checkpoints", "best")
    config = load_config(tiny_run / "config.yaml")
    store = Store.open(tiny_run.parents[1] / "stores/tiny")
    for split, known in (("test", False), ("validation", True), ("all", True)):
        run = load_trained_run(checkpoint, config, store.subjects(split))
        assert (run.fits.law is None) == known == bool(run.lawless), split
        assert known == ("validation" in run.lawless)
