"""CIFAR-10: every byte arrives, official splits hold, and a pickle runs nothing."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.store import Store

CIFAR10 = Path(__file__).parents[2].parent / "shared/data/cifar-10-batches-py"


@pytest.fixture
def cifar10() -> Path:
    """The batches in their own format."""
    if not CIFAR10.is_dir():
        pytest.skip(f"the CIFAR-10 batches are not at {CIFAR10}")
    return CIFAR10


def configured(root: Path, *more: str) -> list[str]:
    """Arguments for the store `c10`."""
    return [
        *("--prepare.name", "c10", "--prepare.source", "cifar10", "--prepare.size", "32"),
        *("--prepare.root", str(root), "--prepare.workers", "1", *more),
    ]


def images_and_labels(store: Store, *splits: str) -> tuple[np.ndarray, list[int]]:
    """All images (n,3,32,32) uint8 and labels of some splits, in the set's order."""
    found = []
    for split in splits:
        for entry in store.subjects(split):
            pixels = store.slices(entry)
            assert (pixels % 257 == 0).all()
            found += zip(
                entry.slice_indices, (pixels // 257).astype(np.uint8), entry.labels, strict=False
            )
    found.sort(key=lambda item: item[0])
    assert [number for number, *_ in found] == list(range(len(found)))
    return np.stack([image for _, image, _ in found]), [label for *_, label in found]


def test_the_round_trip_equals_torchvisions_pixels_and_labels(
    cifar10: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10 as Torchvisions
    from torchvision.datasets import cifar

    # The batches at hand were re-encoded, so the published MD5 sums can't hold.
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    assert main(configured(cifar10)) == 0
    store = Store.open(work / "stores/c10")
    for train, splits in ((True, ("train", "validation")), (False, ("test",))):
        expected = Torchvisions(cifar10.parent, train=train)
        images, labels = images_and_labels(store, *splits)
        np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), expected.data)
        assert labels == expected.targets
    assert len({entry.source_sha256 for entry in store.entries}) == len(store.entries)
