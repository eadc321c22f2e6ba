"""What many tests share: one thread, a work folder of their own, tiny prepared stores."""

import contextlib
import importlib.util
import os
import pty
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from hypothesis import settings
from scipy.ndimage import gaussian_filter
from tiny import TINY

from data_prep.config import PrepareConfig
from data_prep.store import Store, SubjectEntry, new_manifest, write_manifest, write_shard

torch.set_num_threads(1)
# Autograd counts devices at the first backward pass. After torch.export there is a pretended GPU
# with a thread of its own, and a process with such threads has no forks that can train.
torch.ones((), requires_grad=True).backward()
# Deterministic: a test that fails, fails on every machine. The clock of a busy one is no failure.
settings.register_profile("laws", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("laws")

OASIS = Path(__file__).parents[1].parent / "shared/data/oasis-hcp-layout"
SIDE = 32
SPLITS = ("train", "train", "train", "validation", "test", "test")

MakeStore = Callable[..., Store]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything generated goes to a folder of the test's own, MLflow's database included."""
    folder = tmp_path / "work"
    monkeypatch.setenv("WORK", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture(scope="session")
def oasis() -> Path:
    """The real OASIS volumes in the HCP layout."""
    if not OASIS.is_dir():
        pytest.skip(f"the OASIS volumes are not at {OASIS}")
    return OASIS


@pytest.fixture(scope="session")
def example() -> Callable[[str], ModuleType]:
    """Imports a program of docs/examples by its name."""
    return partial(_load, "docs/examples")


@pytest.fixture(scope="session")
def docs_program() -> Callable[[str], ModuleType]:
    """Imports a program of docs/ by its name."""
    return partial(_load, "docs")


def _load(folder: str, name: str) -> ModuleType:
    path = Path(__file__).parents[1] / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def on_a_terminal() -> Callable[[Callable[[], None]], str]:
    """Runs a function in a process whose standard output is a terminal; what that is sent."""

    def run(child: Callable[[], None]) -> str:
        process, terminal = pty.fork()
        if process == 0:
            child()
            os._exit(0)
        said = b""
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while part := os.read(terminal, 4096):
                said += part
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
        return said.decode()

    return run


def blobs(
    count: int, channels: int, generator: np.random.Generator, side: int = SIDE
) -> np.ndarray:
    """Smooth blobs, some sharp edges, a dark surround: (count,channels,side,side) in [0,1]."""
    noise = generator.standard_normal((count, channels, side, side))
    smooth = gaussian_filter(noise, (0, 0, 2.5, 2.5))
    smooth = 0.5 + 0.2 * smooth / smooth.std()
    axis = np.linspace(-1, 1, side)
    head = np.hypot(axis[:, None], axis[None, :]) < 0.85
    return np.clip((smooth + 0.2 * (smooth > 0.6)) * head, 0, 1)


def write_store(
    work: Path,
    name: str = "tiny",
    *,
    seed: int = 0,
    prefix: str = "p",
    splits: Sequence[str] = SPLITS,
    families: Sequence[str] | None = None,
    slices: int = 6,
    channels: int = 1,
    plane: str = "axial",
    side: int = SIDE,
    dimmed: str = "",
) -> Store:
    """A prepared store of one subject per item of `splits`, written by the store's own writer.

    dimmed: a split whose images have 0.8 of their intensity.
    """
    generator = np.random.default_rng(seed)
    path = work / "stores" / name
    entries = []
    for index, split in enumerate(splits):
        subject = f"{prefix}{index:02d}"
        images = blobs(slices, channels, generator, side) * (0.8 if split == dimmed else 1)
        shard = write_shard(path, subject, images)
        entries.append(
            SubjectEntry(
                subject=subject,
                family=families[index] if families else subject,
                split=split,
                source=f"{subject}.nii.gz",
                source_sha256=shard["shard_sha256"],
                source_bytes=1,
                source_mtime_ns=1,
                mask="",
                mask_bytes=0,
                mask_mtime_ns=0,
                slice_indices=tuple(range(slices)),
                affine=tuple(tuple(map(float, row)) for row in np.eye(4)),
                cropped=False,
                **shard,
            )
        )
    write_manifest(
        path,
        new_manifest(
            name=name,
            simulated=True,
            configuration=PrepareConfig(size=side).recorded(),
            image_shape=(channels, side, side),
            spacing_mm=3.2,
            orientation="rows A>P, columns L>R",
            plane=plane,
            subjects=entries,
            quarantined=[],
        ),
    )
    return Store.open(path)


@pytest.fixture(scope="session")
def store_writer() -> MakeStore:
    """`write_store`: writes a tiny store into a work folder."""
    return write_store


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six subjects over the three splits, 6 slices each, 32x32. Read only."""
    return write_store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with the store, the configuration and the run `tiny`, trained once. Read only.

    Trained without MLflow, whose addresses are absolute, and not scored.
    """
    from pipeline.__main__ import main  # slow to import

    folder = tmp_path_factory.mktemp("tiny_run").resolve() / "work"
    write_store(folder)
    config = TINY | {"tracking": {"enabled": False}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORK", str(folder))
        assert main(["train", "--config", str(folder / "tiny.yaml")]) == 0
    return folder


@pytest.fixture
def tiny_run(tiny_work: Path, work: Path) -> Path:
    """The folder of the run `tiny` in a copy of its work folder that is the test's own WORK."""
    shutil.copytree(tiny_work, work)
    return work / "runs/tiny"
