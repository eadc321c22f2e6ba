"""The runs of a comparison: every term, rate and seed."""

import itertools
from dataclasses import dataclass, replace
from typing import get_args

from data_prep.executors.local import available_cores
from pipeline.blur import Form
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import Shape
from pipeline.losses.registry import TERMS, build_term

# What `compare.quick` leaves of a configuration: enough to see that everything works.
QUICK_EPOCHS, QUICK_STEPS, QUICK_WARMUP, QUICK_IMAGES = 8, 25, 2, 1000

# The blur term's second form is a row of its own where no terms are named.
DEFAULT = (*TERMS, "blur:positive_definite")


@dataclass(frozen=True)
class Entry:
    """One run: its term as it was asked for, the rate that it is held at in nats, and its seed.

    rate 0: none is held, β stays training.beta.
    """

    term: str
    rate: float
    seed: int
    run: str
    config: Config

    def __str__(self) -> str:
        return f"{self.term}, {at_rate(self.rate)}, seed {self.seed}"


def at_rate(target: float) -> str:
    """What was held, in words: a rate in nats, or β for 0."""
    return f"{target:g} nats" if target else "fixed β"


def plan(config: Config, name: str, image_shape: Shape) -> tuple[list[Entry], dict[str, str]]:
    """All runs of a comparison, seed by seed, and the terms that are left out, with the reasons.

    name: of the comparison; image_shape: (C,H,W) of the store. Raises InputError where a term is
    unknown, or is named and can't judge such images, something is named twice, or no rate is given.
    """
    settings = config.compare
    rates = settings.rate_targets or (config.training.rate_target,)
    if None in rates:
        raise InputError(
            "terms are compared at one rate: give it in nats with --compare.rate_targets [400], "
            "or hold β instead with [0]"
        )
    if settings.quick:
        config, name = quick(config), f"{name}-quick"
    if config.likelihood.warmup_epochs >= config.training.epochs:
        raise InputError(
            f"likelihood.warmup_epochs {config.likelihood.warmup_epochs} leaves nothing of "
            f"training.epochs {config.training.epochs} to compare: no term would be trained"
        )
    terms, absent = _terms(config, image_shape)
    threads = config.training.threads or max(1, available_cores() // jobs_at_once(config))
    config = replace(
        config,
        # By steps, never by the clock, which slow terms would lose against.
        training=replace(config.training, threads=threads, max_minutes=0.0),
        # The best checkpoint is the best by PSNR, which some terms are made for.
        evaluation=replace(config.evaluation, checkpoint="last"),
    )
    entries = []
    for seed, rate, term in itertools.product(config.compare.seeds, rates, terms):
        training = replace(config.training, rate_target=rate or None, seed=seed)
        own = replace(config, training=training, likelihood=terms[term])
        run = f"{name}-{term.replace(':', '_')}-r{rate:g}-s{seed}"
        entries.append(Entry(term, float(rate or 0.0), seed, run, own))
    if len({entry.run for entry in entries}) < len(entries):
        raise InputError(
            f"compare.terms, seeds or rate_targets name something twice: {list(settings.terms)}, "
            f"{list(settings.seeds)}, {list(rates)}"
        )
    return entries, absent


def _terms(
    config: Config, image_shape: Shape
) -> tuple[dict[str, LikelihoodConfig], dict[str, str]]:
    """The section `likelihood` of each term; and of those that can't be built here, the reason."""
    named: dict[str, LikelihoodConfig] = {}
    absent: dict[str, str] = {}
    for name in config.compare.terms or DEFAULT:
        term, colon, form = name.partition(":")
        forms = get_args(Form)
        if term not in TERMS or (colon and (term != "blur" or form not in forms)):
            blurs = ", ".join(f"blur:{form}" for form in forms)
            raise InputError(f"compare.terms must be of {', '.join(TERMS)}, {blurs}, not {name!r}")
        likelihood = replace(config.likelihood, term=term)
        if form:
            likelihood = replace(likelihood, form=form)  # type: ignore[arg-type]
        try:
            build_term(likelihood, image_shape)
        except (InputError, ValueError) as error:
            if config.compare.terms:
                raise InputError(str(error)) from error
            absent[name] = str(error)
        else:
            if likelihood not in named.values():  # blur, and blur in the form that it has anyway
                named[name] = likelihood
    return named, absent


def quick(config: Config) -> Config:
    """One seed and a few hundred steps: a trial of the whole, whose scores mean little."""
    training, likelihood = config.training, config.likelihood
    return replace(
        config,
        compare=replace(config.compare, seeds=config.compare.seeds[:1]),
        likelihood=replace(likelihood, warmup_epochs=min(QUICK_WARMUP, likelihood.warmup_epochs)),
        training=replace(
            training,
            epochs=min(QUICK_EPOCHS, training.epochs),
            epoch_steps=min(QUICK_STEPS, training.epoch_steps or QUICK_STEPS),
            rate_warmup_steps=min(QUICK_STEPS, training.rate_warmup_steps),
        ),
        prior=replace(config.prior, images=min(QUICK_IMAGES, config.prior.images)),
        evaluation=replace(config.evaluation, samples=min(64, config.evaluation.samples)),
    )


def jobs_at_once(config: Config) -> int:
    """`compare.jobs`, or for 0 a run a core on a CPU, and one run on a GPU."""
    if config.compare.jobs:
        return config.compare.jobs
    from pipeline.distributed import choose_device  # torch takes seconds

    return available_cores() if choose_device(config.training.device).type == "cpu" else 1
