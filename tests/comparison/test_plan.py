"""Runs that are compared are alike but for the term."""

from dataclasses import replace

import pytest
import torch

from pipeline.comparison import compare
from pipeline.comparison.compare import DEFAULT, QUICK_EPOCHS, QUICK_STEPS, Entry, plan
from pipeline.config import CompareConfig, Config, TrainingConfig
from pipeline.errors import InputError
from pipeline.losses import vgg
from pipeline.losses.registry import TERMS
from pipeline.metrics.perceptual import WeightsNotFound
from pipeline.training.objective import build_objective

SHAPE = (1, 64, 64)
CHEAP = ("blur", "blur:positive_definite", "gaussian", "laplace", "watson_dft")


def _entries(**changes: object) -> list[Entry]:
    return plan(_config(**changes), "name", SHAPE)[0]


def _config(**changes: object) -> Config:
    settings = {"terms": CHEAP, "rate_targets": (100.0, 0.0), "jobs": 2} | changes
    training = TrainingConfig(rate_target=50.0, beta=2.0, max_minutes=5.0)
    return Config(compare=CompareConfig(**settings), training=training)  # type: ignore[arg-type]


def test_there_is_a_run_for_every_term_rate_and_seed_and_they_differ_in_nothing_else() -> None:
    entries = _entries()
    assert {(e.term, e.rate, e.seed) for e in entries} == {
        (term, rate, seed) for term in CHEAP for rate in (100.0, 0.0) for seed in (0, 1, 2)
    }
    assert len({entry.run for entry in entries}) == len(entries) == 30
    first = entries[0].config
    assert first.training.max_minutes == 0.0  # none by the clock
    for entry in entries:
        term, _, form = entry.term.partition(":")
        likelihood = replace(first.likelihood, term=term, form=form or "wiener")  # type: ignore[arg-type]
        training = replace(first.training, rate_target=entry.rate or None, seed=entry.seed)
        assert entry.config == replace(first, likelihood=likelihood, training=training)
    assert {e.config.training.rate_target for e in _entries(rate_targets=())} == {50.0}
    same = _entries(terms=("blur", "blur:wiener", "blur:positive_definite"))
    assert {e.term for e in same} == {"blur", "blur:positive_definite"}


def test_terms_of_a_seed_start_from_the_same_network() -> None:
    weights = []
    for entry in _entries(rate_targets=(0.0,), seeds=(0,)):
        torch.manual_seed(entry.seed)
        weights.append(build_objective(entry.config, SHAPE).vae.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(value, other[key]) for key, value in weights[0].items())


def test_all_terms_are_the_default_but_those_without_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(*_: object) -> None:
        raise WeightsNotFound("nowhere")

    monkeypatch.setattr(vgg, "backbone_state", nothing)
    entries, absent = plan(_config(terms=()), "name", SHAPE)
    assert {entry.term for entry in entries} | set(absent) == set(DEFAULT) > set(TERMS)
    assert "nowhere" in absent["vgg"]
    with pytest.raises(InputError, match=r"likelihood\.vgg_weights: nowhere"):
        _entries(terms=("gaussian", "vgg"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"terms": ("gaussian", "l3")}, "l3"),
        ({"terms": ("gaussian:wiener",)}, "gaussian:wiener"),
        ({"terms": ("blur:sharp",)}, "blur:sharp"),
        ({"seeds": (1, 1)}, "twice"),
        ({"rate_targets": (400.0001, 400.0002)}, "twice"),
        ({"jobs": -1}, "compare.jobs"),
        ({"seeds": ()}, "compare.seeds"),
        ({"rate_targets": (-1.0,)}, "compare.rate_targets"),
    ],
)
def test_impossible_comparisons_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises((InputError, ValueError), match=words):
        _entries(**changes)


def test_quick_is_one_seed_and_few_steps_under_names_of_its_own() -> None:
    """The rate's weight has its full size long before the 200 steps are over."""
    entries = _entries(quick=True)
    assert {entry.seed for entry in entries} == {0}
    assert not {e.run for e in _entries()} & {e.run for e in entries}
    for training in (entry.config.training for entry in entries):
        assert training.epochs * training.epoch_steps <= QUICK_EPOCHS * QUICK_STEPS
        assert training.rate_warmup_steps <= QUICK_EPOCHS * QUICK_STEPS / 4


def test_jobs_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "available_cores", lambda: 8)
    for jobs, threads in ((0, 1), (2, 4), (16, 1)):
        assert {e.config.training.threads for e in _entries(jobs=jobs)} == {threads}
