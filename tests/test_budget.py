"""Budget of the code, and every key and option there is: a new one is a decision (CONTRIBUTING)."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import COMMANDS, FOREIGN
from pipeline.config import Config
from pipeline.models.config import Level

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_prep", "pipeline", "sharp_vae")
# What is reached; CONTRIBUTING says what is aimed at. Lower them with every room that is halved.
LINES, TEST_LINES, MODULES = 20_700, 17_000, 131

KEYS = """
prepare: name source root template mask_template mask_threshold assume_orientation subjects_table
  subjects_table_extra plane size spacing_mm slice_spacing_mm min_brain_area max_slices
  lower_percentile upper_percentile n4 workers scheduler check dry_run max_quarantined track crop
  validation_images download
prepare.split: train validation test salt fold
prepare.cohort: people seed
prepare.plausibility: action brain_ml width_mm length_mm height_mm cut_off_percent
  largest_piece_percent filled_percent box_percent mean_percent saturated_percent oblique_degrees
  shear_degrees
data: store flip workers on_device
data.augmentation: enabled rotation_degrees scale translation shear elastic elastic_points gamma
  gain
model: levels width max_width residual_blocks kernel_hidden
model.levels: side channels groups opens
prior: pieces subjects images augmentation seed
likelihood: term scale form constant kernel_size warmup_epochs detach_kernel residual residual_floor
  residual_steps vgg_weights
training: epochs epoch_steps max_minutes batch_size learning_rate kernel_learning_rate
  lr_warmup_steps rate_warmup_steps gradient_clip ema_decay beta rate_target seed threads device
  precision accumulation compile cuda_graph max_skipped checkpoint_every checkpoint_minutes
  keep_checkpoints validate_every figure_every
evaluation: store other_people split checkpoint device threads batch_size max_slices samples
  lpips_alex_weights lpips_vgg_weights inception_weights download seed
compare: terms seeds rate_targets jobs quick
tracking: enabled experiment
"""

OPTIONS = """
export: run output onnx checkpoint prior authors copyright register experiment
reconstruct: package law output store subjects other_people slices seed image kspace like scale
  operator acceleration kind centre_fraction mask coils sensitivities phase simulated_phase blur
  factor noise tv_weight wavelet_weight steps samples
anomaly: package law output image mask assume_orientation lesions baseline finest tail restore_steps
  device
lesions: package law output store subjects other_people slices seed diameters contrasts repeats
  false_positives baseline finest
ui: port experiment browser
evaluate: reconstructions store split max_slices lpips_alex_weights lpips_vgg_weights download
  output
"""


def listed(text: str) -> dict[str, list[str]]:
    """The names after each word that ends with a colon."""
    lists: dict[str, list[str]] = {}
    for word in text.split():
        if word.endswith(":"):
            names = lists[word[:-1]] = []
        else:
            names.append(word)
    return lists


def in_order(lists: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: sorted(names) for name, names in lists.items()}


def sections(section: Any, name: str = "") -> Iterator[tuple[str, list[str]]]:
    """The keys of a configuration, section by section."""
    values = {field.name: getattr(section, field.name) for field in fields(section)}
    if name:
        yield name, [key for key, value in values.items() if not is_dataclass(value)]
    for key, value in values.items():
        if is_dataclass(value):
            yield from sections(value, f"{name}.{key}".lstrip("."))


def test_the_keys_are_these() -> None:
    keys = dict(sections(Config())) | {"model.levels": [field.name for field in fields(Level)]}
    assert in_order(keys) == in_order(listed(KEYS))


def test_the_options_are_these() -> None:
    rows = {name: row for name, row in COMMANDS.items() if row.module} | {"evaluate": FOREIGN}
    kinds = {name: row.options or import_module(row.module).Options for name, row in rows.items()}
    options = {name: [field.name for field in fields(kind)] for name, kind in kinds.items()}
    assert in_order(options) == in_order(listed(OPTIONS))


@pytest.mark.parametrize(
    ("what", "number", "limit"),
    [
        ("lines of packages", lambda: lines(*PACKAGES), LINES),
        ("lines of tests", lambda: lines("tests"), TEST_LINES),
        ("modules", lambda: len(list(modules(*PACKAGES))), MODULES),
        ("keys", lambda: sum(map(len, listed(KEYS).values())), 131),
        ("options", lambda: sum(map(len, listed(OPTIONS).values())), 74),
    ],
)
def test_the_budget_is_kept(what: str, number: Any, limit: int) -> None:
    assert number() <= limit, f"{number()} {what}, at most {limit}: see Budget in CONTRIBUTING.md"


def modules(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (ROOT / folder).rglob("*.py")


def lines(*folders: str) -> int:
    return sum(len(path.read_text("utf-8").splitlines()) for path in modules(*folders))
