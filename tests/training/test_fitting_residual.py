"""The law of the residuals is fitted once, the model untouched, and kept with its inputs."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from trainers import config

from data_prep.store import Store
from pipeline.config import Config
from pipeline.data.slices import SliceDataset
from pipeline.losses.residual import ResidualLaw
from pipeline.models.vae import VAE
from pipeline.tracking.runs import NoTracker
from pipeline.training.checkpoint import Checkpoint, latest_checkpoint
from pipeline.training.kept import Kept
from pipeline.training.loop import Trainer, load_objective
from pipeline.training.residual import LEVEL, halves, residual_law_of


@pytest.fixture(scope="module")
def trained(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A tiny run's checkpoint. Read only but for its law."""
    folder = tmp_path_factory.mktemp("trained")
    settings = config(likelihood__residual_steps=6)
    Trainer(settings, tiny_store, folder, None).fit(NoTracker())
    return folder / "checkpoints", settings


def _opened(trained: tuple[Path, Config]) -> tuple[Checkpoint, VAE, Config]:
    checkpoint = latest_checkpoint(trained[0])
    assert checkpoint is not None
    return checkpoint, load_objective(checkpoint, trained[1]).vae, trained[1]


def _alike(one: ResidualLaw, other: ResidualLaw) -> bool:
    return all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_it_is_fitted_once_and_again_for_other_inputs(
    trained: tuple[Path, Config], tiny_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, vae, settings = _opened(trained)
    assert residual_law_of(checkpoint, vae, settings, None) is None  # nothing to fit it to
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    first = residual_law_of(checkpoint, vae, settings, tiny_store)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    kept = residual_law_of(checkpoint, vae, settings, None)
    assert first is not None and kept is not None and _alike(first, kept)
    assert not any(parameter.requires_grad for parameter in first.parameters())

    other = dataclasses.replace(settings.likelihood, residual_floor=0.01)
    changed = dataclasses.replace(settings, likelihood=other)
    assert residual_law_of(checkpoint, vae, changed, None) is None
    old = residual_law_of(checkpoint, vae, changed, None, any_kept=True)
    assert old is not None and old.floor.item() == pytest.approx(1 / 255)

    path = checkpoint.path / "residual.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert residual_law_of(checkpoint, vae, settings, None) is None
    assert "made again" in caplog.text
    again = residual_law_of(checkpoint, vae, settings, tiny_store)
    assert again is not None and _alike(first, again), "by the seed"


def test_one_that_is_not_finite_is_fitted_again(
    trained: tuple[Path, Config], tiny_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Laws of good models at 256² were, before the fit began at their residuals."""
    checkpoint, vae, settings = _opened(trained)
    sound = residual_law_of(checkpoint, vae, settings, tiny_store)
    broken = ResidualLaw(vae.image_shape, 1 / 255)
    broken.factors.fill_(float("inf"))
    inputs = {"floor": 1 / 255, "steps": 6, "seed": settings.training.seed, "flip": True}
    Kept(checkpoint, "residual", inputs).write(broken, {"floor": 1 / 255})
    again = residual_law_of(checkpoint, vae, settings, tiny_store)
    assert "not finite" in caplog.text
    assert sound is not None and again is not None and _alike(sound, again)


def test_families_are_not_parted() -> None:
    def parted(*families: str) -> tuple[list[str], list[str]]:
        people = [SimpleNamespace(family=family) for family in families]
        one, other = halves(people)  # type: ignore[arg-type]
        return [e.family for e in one], [e.family for e in other]

    assert parted("a", "b", "a", "c", "d", "e") == (["a", "b", "a", "c"], ["d", "e"])
    assert parted("a", "b", "a") == (["a", "a"], ["b"])
    assert parted("a", "a") == (["a", "a"], ["a", "a"])


def test_its_intervals_cover_brains_that_it_was_not_fitted_to(
    trained: tuple[Path, Config], tiny_store: Store
) -> None:
    checkpoint, vae, settings = _opened(trained)
    law = residual_law_of(checkpoint, vae, settings, tiny_store)
    assert law is not None
    data = SliceDataset(tiny_store, halves(tiny_store.subjects("validation"))[1])
    images = data.__getitems__(range(len(data)))
    with torch.no_grad():
        reconstruction = vae.infer(images).reconstruction
        width = law(reconstruction).half_width(LEVEL, images.shape)
    inside = ((images - reconstruction).abs() <= width)[images > 0].double().mean().item()
    assert inside == pytest.approx(LEVEL, abs=0.02)


def test_none_is_asked_for(trained: tuple[Path, Config], tiny_store: Store) -> None:
    checkpoint, vae, settings = _opened(trained)
    none = dataclasses.replace(settings.likelihood, residual="none")
    off = dataclasses.replace(settings, likelihood=none)
    assert residual_law_of(checkpoint, vae, off, tiny_store) is None
