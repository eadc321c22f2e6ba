"""What MLflow says of an evaluation: headline scores, the table of intervals, the description."""

from collections.abc import Mapping

from data_prep import Store
from pipeline.config import Config
from pipeline.evaluation.scores import warning_of
from pipeline.metrics.catalogue import DENSITY, RECONSTRUCTION, SAMPLES
from pipeline.metrics.statistics import Interval
from pipeline.tracking.names import score_name
from pipeline.tracking.notes import table
from pipeline.training.description import run_name

# What the training run shows, too, to sort the list of runs by.
HEADLINE = (
    "psnr", "ssim", "lpips_alex", "fid", "high_frequency_ratio", "rate", "elbo_bits_per_dim",
    "sample_kid_coarse", "sample_novelty", "calibration_fitted_coverage_90",
)  # fmt: skip
HEADINGS = {metric.key: metric.heading for metric in (*RECONSTRUCTION, *DENSITY)}
HEADINGS |= {metric.key: f"samples: {metric.heading}" for metric in SAMPLES}
HEADINGS["calibration_fitted_coverage_90"] = "90% intervals that hold, fitted law → 0.9"

# The same in one line: a key, and its value in words.
IN_A_LINE = {
    "psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.3f}", "lpips_alex": "LPIPS {:.3f}",
    "high_frequency_ratio": "high frequencies {:.2f} of the data's", "rate": "{:.0f} nats",
}  # fmt: skip
SCORES = "Scores"
LOOK = """\
- *Artifacts*, `figures`: reconstructions with error maps, samples, kernels, spectra, calibration
- `scores.json`: every metric with its 95% interval; `per_subject.csv`: every subject's"""


def evaluation_name(config: Config, store: Store, run: str, trained_on: str) -> str:
    """The training run's name and what was scored; `trained_on` is the name of that run's store."""
    settings = config.evaluation
    where = f" of {store.name}" if settings.store else ""
    return f"{run_name(config, trained_on, run)}: {settings.split}{where}"


Means = Mapping[str, float | None]


def score_names(means: Means, split: str) -> dict[str, float]:
    """All means by their names in MLflow."""
    return {score_name(key, split): value for key, value in means.items() if value is not None}


def headline_names(means: Means, folder: str) -> dict[str, float]:
    """Headline means by their names on the training run.

    folder: the evaluation's. Scores of others than the run's own test subjects have it as their
    group: they must not pass for test scores, nor for the validation of the epochs.
    """
    names = score_names({key: means[key] for key in HEADLINE if key in means}, "test")
    if folder == "evaluation":
        return names
    return {f"{folder}/{name.removeprefix('test/')}": value for name, value in names.items()}


def scores_columns(metrics: Mapping[str, Interval], split: str) -> dict[str, list[object]]:
    """Every metric with its interval, as columns; the headline comes first."""
    first = [key for key in HEADLINE if key in metrics]
    keys = [*first, *sorted(metrics.keys() - set(first))]
    return {
        "metric": [score_name(key, split) for key in keys],
        **{part: [metrics[key][part] for key in keys] for part in ("mean", "low", "high")},
        "key": [*keys],
    }


def scores_note(metrics: Mapping[str, Interval], absent: Mapping[str, str]) -> str:
    """Headline scores as a line and a table of Markdown, and what is missing."""
    rows = []
    for key in HEADLINE:
        interval = metrics.get(key)
        if interval is None or interval["mean"] is None:
            continue
        low, high = interval["low"], interval["high"]
        between = "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
        rows.append([HEADINGS[key], f"{interval['mean']:.4g}", between])
    means = {key: interval["mean"] for key, interval in metrics.items()}
    words = [
        text.format(means[key]) for key, text in IN_A_LINE.items() if means.get(key) is not None
    ]
    parts = [f"**{', '.join(words)}**", table(["score", "mean", "95% interval"], rows)]
    if warning := warning_of(metrics):
        parts.append(f"{warning.capitalize()}.")
    if absent:
        parts.append(f"Not scored: {', '.join(sorted(absent))}; `absent.json` says why.")
    return "\n\n".join(parts)
