"""The examples of docs/ run as they stand, and do what they say."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pipeline
from data_prep import Store
from pipeline.package import standalone

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/examples"
TINY = (
    "--training.epochs=2",
    "--training.batch_size=6",
    "--likelihood.warmup_epochs=1",
    "--likelihood.kernel_size=5",
    "--likelihood.residual_steps=2",
    "--model.levels=[{side: 8, channels: 4}]",
    "--model.width=8",
    "--prior.images=20",
    "--prior.subjects=2",
    "--tracking.enabled=false",
)

Example = Callable[[str], ModuleType]


def test_monai_trains_on_a_store(tiny_store: Store, example: Example) -> None:
    losses = example("monai_training").main([str(tiny_store.path)])
    assert losses[-1] < 0.8 * losses[0]


def test_monai_trains_on_slices_of_real_volumes(oasis: Path, example: Example) -> None:
    paths = sorted(oasis.glob("*/T1w/*_brain.nii.gz"))[:1]
    losses = example("monai_training").main([str(path) for path in paths])
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture(scope="module")
def looked(
    tmp_path_factory: pytest.TempPathFactory, store_writer: Callable[..., Store], example: Example
) -> Iterator[tuple[Path, dict[str, float]]]:
    """A folder in which the first example has run, with its store and packages; its scores."""
    work = tmp_path_factory.mktemp("looked")
    store_writer(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORK", str(work))
        scores = example("train_and_look").main(str(ROOT / "configs/demo.yaml"), "tiny", *TINY)
        yield work, scores


def test_both_terms_are_trained_and_drawn(looked: tuple[Path, dict[str, float]]) -> None:
    work, scores = looked
    assert scores.keys() == {"gaussian", "blur"} and scores["gaussian"] != scores["blur"]
    assert (work / "train_and_look.png").stat().st_size > 10_000
    for term in scores:
        assert pipeline.open_package(str(work / f"packages/look-{term}")).term == term


def test_a_decoder_fills_in_without_this_project(
    looked: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    work, _ = looked
    head = Path(standalone.__file__).read_text().partition("def main")[0]
    script = tmp_path / "example.py"
    body = (FOLDER / "decoder_in_torch.py").read_text()
    script.write_text(f"{head}\nsys.meta_path.insert(0, Blocker())\n{body}")
    words = [str(work / "packages/look-blur"), str(work / "stores/tiny"), "filled.png"]
    done = subprocess.run(
        [sys.executable, "-I", script, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    empty, filled = map(float, re.findall(r"\d\.\d+", done.stdout))
    assert filled < empty
    assert (tmp_path / "filled.png").is_file()


def test_data_and_decoder_reconstruct_better_than_the_decoder_alone(
    looked: tuple[Path, dict[str, float]], example: Example, tmp_path: Path
) -> None:
    work, _ = looked
    places = (str(work / "packages/look-blur"), str(work / "stores/tiny"))
    scores = example("kspace").main(*places, str(tmp_path / "kspace.png"), steps=20)
    assert scores["decoder and data"] > scores["decoder alone"] + 3
    assert (tmp_path / "kspace.png").is_file()


def test_the_three_examples_are_short_and_every_example_is_listed() -> None:
    for name in ("train_and_look", "decoder_in_torch", "kspace"):
        assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 60
    page = (ROOT / "docs/examples.md").read_text(encoding="utf-8")
    assert not [path.name for path in FOLDER.glob("*.*") if f"(examples/{path.name})" not in page]
