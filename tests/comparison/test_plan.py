"""What is compared is alike but for the term."""

from dataclasses import asdict, replace

import pytest

from pipeline.backbones import WeightsNotFound
from pipeline.comparison.plan import DEFAULT, QUICK_EPOCHS, QUICK_STEPS, Entry, plan
from pipeline.config import CompareConfig, Config, TrainingConfig
from pipeline.errors import InputError
from pipeline.losses import vgg
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.registry import TERMS

SHAPE = (1, 64, 64)
CHEAP = ("blur", "blur:positive_definite", "gaussian", "laplace", "watson_dft")


def _config(**changes: object) -> Config:
    settings = {"terms": CHEAP, "rate_targets": (100.0, 200.0), "jobs": 2} | changes
    return Config(compare=CompareConfig(**settings))  # type: ignore[arg-type]


def _entries(config: Config) -> list[Entry]:
    return plan(config, "name", SHAPE)[0]


def test_there_is_a_run_for_every_term_rate_and_seed() -> None:
    entries = _entries(_config())
    assert {(e.row, e.rate, e.seed) for e in entries} == {
        (row, rate, seed) for row in CHEAP for rate in (100.0, 200.0) for seed in (0, 1, 2)
    }
    assert len({entry.run for entry in entries}) == len(entries) == 30


def test_runs_of_a_rate_and_seed_differ_in_term_and_form_alone() -> None:
    for entry in _entries(_config()):
        config = entry.config
        assert config.training.rate_target == entry.rate
        assert config.training.seed == entry.seed
        same = replace(config.likelihood, term="", form="wiener")
        first = _entries(_config())[0].config
        assert same == replace(first.likelihood, term="", form="wiener")
        training = replace(config.training, rate_target=0.5, seed=0)
        assert training == replace(first.training, rate_target=0.5, seed=0)
        for section in ("data", "model", "evaluation"):
            assert getattr(config, section) == getattr(first, section)


def test_the_last_checkpoint_is_scored_since_the_best_is_so_by_psnr() -> None:
    assert {entry.config.evaluation.checkpoint for entry in _entries(_config())} == {"last"}


def test_a_form_may_be_named_behind_the_term() -> None:
    forms = {e.row: (e.config.likelihood.term, e.config.likelihood.form)
             for e in _entries(_config())}  # fmt: skip
    assert forms["blur"] == ("blur", "wiener")
    assert forms["blur:positive_definite"] == ("blur", "positive_definite")
    assert all(":" not in entry.run for entry in _entries(_config()))


def test_without_rates_the_training_section_s_is_taken() -> None:
    config = replace(_config(rate_targets=()), training=TrainingConfig(rate_target=123.0))
    assert {entry.rate for entry in _entries(config)} == {123.0}


def test_all_terms_are_the_default() -> None:
    assert {row.partition(":")[0] for row in DEFAULT} == set(TERMS)
    entries, absent = plan(_config(terms=()), "name", SHAPE)
    assert {entry.row for entry in entries} | set(absent) == set(DEFAULT)


def test_a_term_without_its_weights_is_left_out_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(*_: object) -> None:
        raise WeightsNotFound("nowhere")

    monkeypatch.setattr(vgg, "backbone_state", nothing)
    entries, absent = plan(_config(terms=()), "name", SHAPE)
    assert "nowhere" in absent["vgg"]
    assert "vgg" not in {entry.row for entry in entries}
    with pytest.raises(InputError, match=r"likelihood\.vgg_weights: nowhere"):
        plan(_config(terms=("gaussian", "vgg")), "name", SHAPE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"terms": ("gaussian", "l3")}, "l3"),
        ({"terms": ("gaussian:wiener",)}, "gaussian:wiener"),
        ({"terms": ("blur:sharp",)}, "blur:sharp"),
        ({"terms": ("blur", "blur:wiener"), "seeds": (1, 1)}, "twice"),
        ({"seeds": (1, 1)}, "twice"),
        ({"rate_targets": (400.0001, 400.0002)}, "twice"),
        ({"rate_targets": ()}, "compare.rate_targets"),
    ],
)
def test_what_can_t_be_compared_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        _entries(_config(**changes))


@pytest.mark.parametrize(
    "changes", [{"jobs": -1}, {"seeds": ()}, {"seeds": (-1,)}, {"rate_targets": (-1.0,)}]
)
def test_a_wrong_section_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"compare\."):
        CompareConfig(**changes)  # type: ignore[arg-type]


def test_quick_is_one_seed_and_few_steps_under_names_of_its_own() -> None:
    entries = _entries(_config(quick=True))
    whole = {entry.run for entry in _entries(_config())}
    assert {entry.seed for entry in entries} == {0}
    assert not whole & {entry.run for entry in entries}
    for training in (entry.config.training for entry in entries):
        assert training.epochs * training.epoch_steps <= QUICK_EPOCHS * QUICK_STEPS


def test_quick_leaves_steps_in_which_the_rate_is_held() -> None:
    """The rate's weight must have its full size long before the 200 steps are over."""
    for training in (entry.config.training for entry in _entries(_config(quick=True))):
        assert training.rate_warmup_steps <= QUICK_EPOCHS * QUICK_STEPS / 4


def test_a_form_that_is_the_configured_one_is_no_row_of_its_own() -> None:
    config = _config(terms=("blur", "blur:wiener", "blur:positive_definite"))
    assert {e.row for e in _entries(config)} == {"blur", "blur:positive_definite"}


def test_the_clock_does_not_decide_how_long_a_term_trains() -> None:
    config = replace(_config(), training=TrainingConfig(max_minutes=5.0))
    assert {entry.config.training.max_minutes for entry in _entries(config)} == {0.0}


@pytest.mark.parametrize(("warm_up", "epochs"), [(6, 6), (10, 6)])
def test_a_warm_up_that_leaves_no_epoch_is_refused(warm_up: int, epochs: int) -> None:
    config = replace(
        _config(),
        training=TrainingConfig(epochs=epochs),
        likelihood=LikelihoodConfig(warmup_epochs=warm_up),
    )
    with pytest.raises(InputError, match=r"likelihood\.warmup_epochs"):
        _entries(config)


def test_jobs_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.comparison.plan.available_cores", lambda: 8)
    for jobs, threads in ((0, 1), (2, 4), (16, 1)):
        assert {e.config.training.threads for e in _entries(_config(jobs=jobs))} == {threads}


def test_entries_are_plain_data() -> None:
    """They travel to other processes and into a run's config.yaml."""
    assert asdict(_entries(_config())[0])["config"]["compare"]["terms"] == CHEAP


def test_rate_zero_holds_none() -> None:
    config = _config(rate_targets=(0.0, 100.0))
    config = replace(config, training=replace(config.training, rate_target=50.0, beta=2.0))
    held = {(e.rate, e.config.training.rate_target, e.config.training.beta)
            for e in _entries(config)}  # fmt: skip
    assert held == {(0.0, None, 2.0), (100.0, 100.0, 2.0)}
    assert "fixed β" in str(next(e for e in _entries(config) if not e.rate))
