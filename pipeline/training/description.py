"""What MLflow says of a training run beside its curves: name, tags, description."""

from data_prep import Store
from data_prep.common.provenance import code_version
from pipeline.config import Config
from pipeline.models.config import describe_levels
from pipeline.tracking.notes import table

SIMULATED = "**The people of this store are simulated: scores on them tell nothing about brains.**"
TRAINING, LOOK = "Training", "What to look at"

# What an epoch's metrics are called in the description: words, decimals.
FIGURES = {
    "validation_psnr": ("PSNR of validation subjects, dB", 2),
    "validation_high_frequency_ratio": ("their high frequencies, over the data's", 3),
    "rate": ("rate, nats per slice", 0),
    "beta": ("weight β of the rate", 3),
    "kernel_width": ("width of the blur kernel, pixels", 2),
    "images_per_second": ("images per second", 0),
}


def term_of(config: Config) -> str:
    """The reconstruction term as comparisons write it: blur, blur:positive_definite, gaussian, …"""
    likelihood = config.likelihood
    other = likelihood.term == "blur" and likelihood.form != "wiener"
    return f"{likelihood.term}:{likelihood.form}" if other else likelihood.term


def run_name(config: Config, store: str, run: str) -> str:
    """Data, term, seed; and the run's own name where it says more.

    store: its name; run: the folder's name under WORK/runs.
    """
    name = f"{store}, {term_of(config)}, seed {config.training.seed}"
    return name if run == store else f"{name} ({run})"


def run_tags(config: Config, store: Store, run: str) -> dict[str, str]:
    """Tags to filter the list of runs by. `run` is the folder's name under WORK/runs."""
    likelihood, code = config.likelihood, code_version()
    source = {"mlflow.source.name": "sharp-vae", "mlflow.source.type": "LOCAL"}
    if "commit" in code:
        source["mlflow.source.git.commit"] = code["commit"]  # MLflow's column Version
    return {
        "run": run,
        "dataset": store.name,
        "store_digest": store.digest,
        "simulated": str(store.simulated).lower(),
        "size": str(store.image_shape[-1]),
        "term": likelihood.term,
        **({"form": likelihood.form} if likelihood.term == "blur" else {}),
        "seed": str(config.training.seed),
        **code,
        **source,
    }


def run_facts(config: Config, store: Store, run: str) -> str:
    """The description of a run that begins: what it is, and where its files are."""
    counts = {split: len(store.subjects(split)) for split in ("train", "validation", "test")}
    subjects = ", ".join(f"{count} {split}" for split, count in counts.items())
    noun = "blocks of images" if store.plane == "image" else "subjects"
    _, height, width = store.image_shape
    lines = [
        *([SIMULATED, ""] if store.simulated else []),
        f"- Store `{store.name}`: {noun} {subjects}; images of {height}×{width}",
        f"- Term `{term_of(config)}`, seed {config.training.seed}, levels "
        f"{describe_levels(config.model.levels)}",
        f"- Files: `runs/{run}` under WORK; `config.yaml` there alone repeats the run",
    ]
    return "\n".join(lines)


def run_figures(metrics: dict[str, float], epochs: int, seconds: float) -> str:
    """The description of a run that is trained: the last epoch's figures."""
    rows = [
        [words, f"{metrics[key]:.{decimals}f}"]
        for key, (words, decimals) in FIGURES.items()
        if key in metrics
    ]
    time = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
    return f"{epochs} epochs in {time}; the last:\n\n" + table(["figure", "value"], rows)


def what_to_look_at(config: Config) -> str:
    """Where in MLflow's pages of a training run a reader finds what."""
    kernel = "; `train/kernel_width`: the blur it has" if config.likelihood.term == "blur" else ""
    return "\n".join(
        [
            "- *Model metrics*: `validation/psnr`, `validation/high_frequency_ratio` (1: as much "
            f"fine detail as the data), `train/rate`{kernel}",
            "- *Artifacts*, `images`: the same slices and their reconstructions, by epoch",
            "- The evaluation is nested below this run in the list; its headline scores are on "
            "this run, too (`test/…`, `samples/…`), as columns to sort by",
        ]
    )
