"""The losses of the first steps are those on record: a change of the numbers is never silent.

A change that is meant is put on record by

    REWRITE_GOLDEN_LOSSES=1 .venv/bin/python -m pytest tests/training/test_golden_losses.py

and shows in the diff of golden/losses.txt.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from trainers import config

from data_prep.common.tracking import Tracker
from data_prep.store import Store
from pipeline.config import Config
from pipeline.models.config import Level
from pipeline.training.loop import Trainer
from pipeline.training.step import TrainingStep

RECORD = Path(__file__).parent / "golden/losses.txt"
REWRITE = "REWRITE_GOLDEN_LOSSES"
COLUMNS = (
    "elbo", "distortion", "rate", "rate_side_4", "rate_side_8", "kernel_loss", "scale",
    "gradient_norm",
)  # fmt: skip
TERMS = ("blur", "gaussian")
# Of 3 an epoch. The first 3 are the blur term's warm-up, and the rate's weight grows over them;
# from step 6 on, at 0.4 of 12, the second level is open.
STEPS = 10
# Six digits are written; 1 or 2 threads, with or without AVX-512, differ by less than 1e-5.
TOLERANCE = 1e-4

Table = list[list[float]]


def _config(term: str) -> Config:
    return config(
        model__levels=[Level(4, 2), Level(8, 1, opens=0.4)], model__width=8, model__max_width=16,
        model__residual_blocks=1, likelihood__term=term, training__rate_warmup_steps=3,
    )  # fmt: skip


def _measured(store: Store, folder: Path, term: str) -> Table:
    """A row for each of the first steps; 0 where there is no such loss."""
    rows: Table = []
    step = TrainingStep.__call__

    def spied(self: TrainingStep, *rest: Tensor, **options: Any) -> dict[str, float]:
        found = step(self, *rest, **options)
        rows.append([found.get(column, 0.0) for column in COLUMNS])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", spied)
        Trainer(_config(term), store, folder, None).fit(Tracker())
    return rows[:STEPS]


def _text(tables: dict[str, Table]) -> str:
    lines = ["# " + " ".join(["term", "step", *COLUMNS])]
    for term, rows in tables.items():
        for number, row in enumerate(rows, start=1):
            lines.append(" ".join([term, str(number), *(f"{value:.6g}" for value in row)]))
    return "\n".join(lines) + "\n"


def _recorded() -> dict[str, Table]:
    tables: dict[str, Table] = {term: [] for term in TERMS}
    for line in RECORD.read_text().splitlines()[1:]:
        term, _, *values = line.split()
        tables[term].append([float(value) for value in values])
    return tables


@pytest.fixture(scope="module")
def recorded(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    """What is on record; written anew first where that is asked for."""
    if os.environ.get(REWRITE):
        folder = tmp_path_factory.mktemp("golden")
        found = {term: _measured(tiny_store, folder / term, term) for term in TERMS}
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(_text(found))
    return _recorded()


@pytest.mark.parametrize("term", TERMS)
def test_the_losses_of_the_first_steps_are_those_on_record(
    tiny_store: Store, tmp_path: Path, recorded: dict[str, Table], term: str
) -> None:
    found = _measured(tiny_store, tmp_path, term)
    assert len(found) == len(recorded[term]) == STEPS
    different = [
        f"{term}, step {number}: {column} {value:.6g} instead of {expected:.6g}"
        for number, (row, old) in enumerate(zip(found, recorded[term], strict=True), start=1)
        for column, value, expected in zip(COLUMNS, row, old, strict=True)
        if value != pytest.approx(expected, rel=TOLERANCE)
    ]
    assert not different, (
        "\n".join(different[:6]) + f"\nif that is meant, write them anew: "
        f"{REWRITE}=1 .venv/bin/python -m pytest {RECORD.parents[1] / Path(__file__).name}"
    )
