"""Every reconstruction term trains, and says what it is in what is tracked."""

from pathlib import Path

import pytest
import torch
from trainers import FixedMonitor, Rows, config

from data_prep.store import Store
from pipeline.errors import InputError
from pipeline.evaluation.evaluate import model_scores
from pipeline.losses.registry import TERMS
from pipeline.training.loop import Trainer


def _trainer(store: Store, folder: Path, name: str) -> Trainer:
    try:
        made = config(likelihood__term=name, likelihood__warmup_epochs=0)
        return Trainer(made, store, folder, FixedMonitor())
    except InputError as error:  # no weights
        pytest.skip(str(error))


@pytest.mark.parametrize("name", sorted(TERMS))
def test_a_short_training_lowers_the_loss(tiny_store: Store, tmp_path: Path, name: str) -> None:
    trainer = _trainer(tiny_store, tmp_path, name)
    before = [p.detach().clone() for p in trainer.objective.term.parameters()]
    rows = Rows()
    trainer.fit(rows)
    first, *_, last = rows.rows.values()
    assert last["skipped_batches"] == 0
    # The rate may grow meanwhile: in the first epochs it counts little.
    assert last["distortion"] < first["distortion"]
    assert ("elbo" in last) == TERMS[name].density
    for old, new in zip(before, trainer.objective.term.parameters(), strict=True):
        assert not torch.equal(old, new), "a term's parameters are trained, too"
    images = torch.rand(2, 1, 32, 32)
    model = trainer.steps.averaged.eval()
    scores = model_scores(model, images, model.vae.infer(images), torch.Generator())
    assert ("elbo_bits_per_dim" in scores) == TERMS[name].density
    assert all(value.isfinite().all() for value in scores.values())


@pytest.mark.parametrize("name", ["robust", "watson_dft", "fourier_gaussian"])
def test_what_a_term_learns_and_counts_is_saved(
    tiny_store: Store, tmp_path: Path, name: str
) -> None:
    one = _trainer(tiny_store, tmp_path, name)
    one.fit(Rows())
    other = _trainer(tiny_store, tmp_path, name)
    other.steps.resume(*one.steps.state())
    found, expected = other.objective.term.state_dict(), one.objective.term.state_dict()
    assert expected and all(torch.equal(value, found[key]) for key, value in expected.items())
