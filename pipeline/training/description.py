"""A training run in words: its epochs on the terminal; its name, tags and note in MLflow."""

from data_prep import Store
from data_prep.common.provenance import code_version
from pipeline.config import Config
from pipeline.models.config import describe_levels
from pipeline.training.objective import RATE_OF_SIDE

SIMULATED = "**The people of this store are simulated: scores on them tell nothing about brains.**"

NOTE = """\
{simulated}- Store `{store}`: {noun} {subjects}; images of {height}×{width}
- Term `{term}`, seed {seed}, levels {levels}
- Files: `runs/{run}` under WORK; `config.yaml` there alone repeats the run
- *Model metrics*: `validation/psnr`, `validation/high_frequency_ratio` (1: as much fine detail as \
the data), `train/rate`; of the blur term `train/kernel_width`
- *Artifacts*, `images`: the same slices and their reconstructions, by epoch
- The evaluation is nested below this run in the list; its headline scores are on this run, too \
(`test/…`, `samples/…`); choose runs by `validation/…`
"""

# An epoch's metrics, those that matter most first: a narrow terminal cuts the rest.
SHOWN = {
    "distortion": "distortion {:.0f}",
    "rate": "rate {:.0f} nats",
    "kernel_width": "width {:.2f} px",
    "validation_psnr": "validation {:.2f} dB",
    "validation_high_frequency_ratio": "high frequencies {:.2f}",
    "beta": "β {:.2f}",
    "kernel_loss": "kernel loss {:.2f}",
    "images_per_second": "{:.0f} images/s",
}


def summary(metrics: dict[str, float]) -> str:
    """An epoch's metrics in a line."""
    words = [text.format(metrics[key]) for key, text in SHOWN.items() if key in metrics]
    if metrics.get("skipped_batches"):
        words.append(f"{metrics['skipped_batches']:.0f} batches skipped")
    return ", ".join(words)


def levels_of(metrics: dict[str, float]) -> dict[int, float]:
    """Each level's rate in nats, by its side, as an epoch's metrics have them."""
    return {
        int(key.removeprefix(RATE_OF_SIDE)): value
        for key, value in metrics.items()
        if key.startswith(RATE_OF_SIDE)
    }


def rates(metrics: dict[str, float]) -> str:
    """The rate of each level; nothing where there is one level."""
    parts = [f"{side}²: {rate:.0f}" for side, rate in levels_of(metrics).items()]
    return f"rate by level {', '.join(parts)} nats" if len(parts) > 1 else ""


def run_name(config: Config, store: str, run: str) -> str:
    """Data, term, seed; and the run's own name where it says more.

    store: its name; run: the folder's name under WORK/runs.
    """
    name = f"{store}, {_term(config)}, seed {config.training.seed}"
    return name if run == store else f"{name} ({run})"


def run_tags(config: Config, store: Store, run: str) -> dict[str, str]:
    """Tags to filter the list of runs by. `run` is the folder's name under WORK/runs."""
    likelihood, code = config.likelihood, code_version()
    tags = {
        "run": run,
        "dataset": store.name,
        "store_digest": store.digest,
        "simulated": str(store.simulated).lower(),
        "size": str(store.image_shape[-1]),
        "term": likelihood.term,
        "seed": str(config.training.seed),
        "mlflow.source.name": "sharp-vae",
        "mlflow.source.type": "LOCAL",
        **code,
    }
    if likelihood.term == "blur":
        tags["form"] = likelihood.form
    if "commit" in code:
        tags["mlflow.source.git.commit"] = code["commit"]  # MLflow's column Version
    return tags


def run_note(config: Config, store: Store, run: str) -> str:
    """The run's description, in Markdown: what it is, where its files are, what to look at."""
    splits = ("train", "validation", "test")
    _, height, width = store.image_shape
    return NOTE.format(
        simulated=f"{SIMULATED}\n\n" if store.simulated else "",
        store=store.name,
        noun="blocks of images" if store.image_set else "subjects",
        subjects=", ".join(f"{len(store.subjects(split))} {split}" for split in splits),
        height=height,
        width=width,
        term=_term(config),
        seed=config.training.seed,
        levels=describe_levels(config.model.levels),
        run=run,
    )


def _term(config: Config) -> str:
    """The reconstruction term as comparisons write it: blur, blur:positive_definite, gaussian, …"""
    likelihood = config.likelihood
    other = likelihood.term == "blur" and likelihood.form != "wiener"
    return f"{likelihood.term}:{likelihood.form}" if other else likelihood.term
