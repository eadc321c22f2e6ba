"""Names and tables as MLflow shows them.

A metric is group/name there, as its charts are grouped by what is before the /. The files of a run
keep their plain keys.
"""

from collections.abc import Sequence

TRAIN, VALIDATION, SAMPLES, CALIBRATION = "train", "validation", "samples", "calibration"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def epoch_name(key: str) -> str:
    """The name of an epoch's metric.

    Example:
        >>> epoch_name("rate"), epoch_name("validation_psnr")
        ('train/rate', 'validation/psnr')
    """
    plain = key.removeprefix("validation_")
    return f"{TRAIN if plain == key else VALIDATION}/{plain}"


def score_name(key: str, split: str = "test") -> str:
    """The name of a metric of metrics.json; `split` says which subjects were scored.

    Example:
        >>> score_name("psnr"), score_name("sample_kid_coarse"), score_name("training_kid_coarse")
        ('test/psnr', 'samples/kid_coarse', 'samples/training_kid_coarse')
        >>> score_name("calibration_fitted_crps")
        'calibration/fitted_crps'
    """
    if key.startswith("training_"):  # what real slices score in place of samples
        return f"{SAMPLES}/{key}"
    for prefix, group in (("sample_", SAMPLES), ("calibration_", CALIBRATION)):
        if key.startswith(prefix):
            return f"{group}/{key.removeprefix(prefix)}"
    return f"{split}/{key}"
