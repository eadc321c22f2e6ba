"""A training run in MLflow, beside its curves: name, tags, description."""

from data_prep import Store
from data_prep.common.provenance import code_version
from pipeline.config import Config
from pipeline.models.config import describe_levels

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
        term=term_of(config),
        seed=config.training.seed,
        levels=describe_levels(config.model.levels),
        run=run,
    )
