"""Draw the calibration of several scored runs in one figure."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_prep import command
from pipeline.errors import InputError
from pipeline.figures import write_figure
from pipeline.files import work_folder, writable


@dataclass(frozen=True)
class Options:
    """Options of the command.

    Args:
        runs: scored runs under WORK/runs, with commas between; NAME=RUN shows another name.
        output: the PNG to write; WORK/calibration.png where empty.
    """

    runs: str
    output: str = ""


def run(options: Options) -> None:
    """Read each run's calibration.json and draw. Raises InputError for a run without one."""
    from pipeline.evaluation.calibration_figures import calibration

    found: dict[str, Any] = {}
    stores: dict[str, None] = {}
    for word in filter(None, (word.strip() for word in options.runs.split(","))):
        name, _, run_name = word.rpartition("=")
        path = work_folder() / "runs" / run_name / "evaluation" / "calibration.json"
        try:
            laws = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            raise InputError(
                f"run {run_name} has no {path}: score it ({command('evaluate')}). There is none "
                "where the term has no interval and likelihood.residual is none"
            ) from None
        try:
            calibration(laws)  # finds out whether the file holds all that it needs
            found |= {f"{name or run_name}, {law}": curves for law, curves in laws.items()}
            config = yaml.safe_load((path.parents[1] / "config.yaml").read_text("utf-8"))
            stores[config["data"]["store"]] = None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(
                f"{path} is damaged: remove {path.parent} and score the run again"
            ) from None
    if not found:
        raise InputError("no runs to draw: give --runs RUN,RUN")
    output = Path(options.output or work_folder() / "calibration.png")
    if output.is_dir():
        raise InputError(f"{output} is a folder: name the file, --output {output}/calibration.png")
    writable(output.parent)
    title = f"Calibration on test subjects of store {', '.join(stores)}"
    write_figure(output, calibration(found, title))
    print(f"calibration of {'; '.join(found)}: {output}")
