"""What a report says of where its scores come from, and the commands that give them again."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from data_prep import flat_keys, program
from pipeline.config import Config
from pipeline.data.slices import Store
from pipeline.files import run_folder


@dataclass(frozen=True)
class About:
    """Title and origin of a page.

    kind: what the page is, after the title; what: was scored; of: on what, after the number of
    subjects; settings: the configuration as YAML.
    """

    title: str
    kind: str
    what: str
    of: str = ""
    simulated: bool = False
    image_set: bool = False
    commands: Sequence[str] = ()
    settings: str = ""

    @property
    def version(self) -> str:
        """Of this program."""
        try:
            return version("sharp-vae-mri")
        except PackageNotFoundError:
            return "not installed"


def about_run(config: Config, trained: Config, run: str, store: Store, epoch: int) -> About:
    """Of a scored run.

    Args:
        config: what it was scored with.
        trained: the configuration that the run keeps.
        run: its name.
        store: what it was scored on.
        epoch: of the checkpoint.
    """
    likelihood = config.likelihood
    form = f" ({likelihood.form})" if likelihood.term == "blur" else ""
    return About(
        title=run,
        kind="scores of a trained run",
        what=f"Trained under the {likelihood.term} term{form}, {config.evaluation.checkpoint} "
        f"checkpoint (epoch {epoch})",
        of=f" of store {store.name}, split {config.evaluation.split}",
        simulated=store.simulated,
        image_set=store.image_set,
        commands=repeat(config, trained, run),
        settings=yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True),
    )


def repeat(config: Config, trained: Config, run: str) -> list[str]:
    """Commands that train a run again under another name and score it alike."""
    old, new = (dict(flat_keys(asdict(c))) for c in (trained, config))
    changed = {key: value for key, value in new.items() if value != old.get(key)}
    again = f"{run}-again"
    return [
        command("train", {"config": str(run_folder(run) / "config.yaml"), "run": again}),
        command("evaluate", {"run": again, **changed}),
    ]


def command(name: str, options: Mapping[str, Any]) -> str:
    """A command line for a shell, with WORK where that is set."""
    work = os.environ.get("WORK")
    words = [f"WORK={shlex.quote(work)}"] if work else []
    words += [program("pipeline"), name]
    for key, value in options.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words.append(f"--{key} {shlex.quote(text)}")
    return " ".join(words)
