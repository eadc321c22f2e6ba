"""The examples of docs/ run as they stand, and do what they say."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from data_prep import Store

Example = Callable[[str], ModuleType]


def test_monai_trains_on_a_store(tiny_store: Store, example: Example) -> None:
    losses = example("monai_training").main([str(tiny_store.path)])
    assert losses[-1] < 0.8 * losses[0]


def test_monai_trains_on_slices_of_real_volumes(oasis: Path, example: Example) -> None:
    paths = sorted(oasis.glob("*/T1w/*_brain.nii.gz"))[:1]
    losses = example("monai_training").main([str(path) for path in paths])
    assert losses[-1] < 0.8 * losses[0]
