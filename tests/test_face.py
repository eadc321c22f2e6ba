"""What a notebook sees: `import data_prep`, `import pipeline`, and nothing else."""

import doctest
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import data_prep
import pipeline

ROOT = Path(__file__).parents[1]
FACES = (data_prep, pipeline)
name_of = pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
# Exported as a module: `pipeline.decoder_package.load`.
SUBMODULES = {"decoder_package"}


@name_of
def test_every_name_of_the_face_is_there(face: ModuleType) -> None:
    for name in face.__all__:
        assert getattr(face, name) is not None
    assert sorted(dir(face)) == sorted(face.__all__)
    with pytest.raises(AttributeError, match="colour"):
        _ = face.colour


@name_of
def test_importing_the_face_loads_nothing_heavy(face: ModuleType) -> None:
    heavy = "{'torch', 'numpy', 'monai', 'mlflow', 'nibabel', 'scipy', 'jsonargparse'}"
    program = f"import sys, {face.__name__}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@name_of
def test_no_module_hides_a_name_of_the_face(face: ModuleType) -> None:
    """Importing a module sets an attribute of its name, which would then be the module."""
    assert face.__file__ is not None
    modules = {path.stem for path in Path(face.__file__).parent.iterdir()}
    assert modules & set(face.__all__) <= SUBMODULES


@pytest.fixture(scope="module")
def notebook(
    tmp_path_factory: pytest.TempPathFactory, store_writer: Callable[..., data_prep.Store]
) -> Path:
    """A folder with configurations, and `work` with a store and a decoder package named `demo`."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "configs").symlink_to(ROOT / "configs")
    store = store_writer(folder / "work", "demo")
    metadata = pipeline.decoder_package.describe(
        store.image_shape,
        pipeline.ModelConfig(levels=[pipeline.Level(8, 2)], width=4, max_width=8),
        pipeline.LikelihoodConfig(term="gaussian", scale=0.1),
        prepare=store.manifest["configuration"],
    )
    package = pipeline.DecoderPackage(metadata)
    pipeline.decoder_package.write(folder / "work/packages/demo", package)
    return folder


@pytest.fixture
def in_notebook(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(notebook)
    monkeypatch.setenv("WORK", "work")
    yield notebook


def _examples(face: ModuleType) -> dict[str, list[doctest.DocTest]]:
    names = {name: getattr(face, name) for name in face.__all__}
    given = {"np": np, "torch": torch, "Path": Path, **names}
    find = doctest.DocTestFinder(exclude_empty=True).find
    return {
        name: [test for test in find(value, name, globs=given) if test.examples]
        for name, value in names.items()
        if not inspect.ismodule(value)
    }


@name_of
def test_the_examples_of_exported_names_hold(face: ModuleType, in_notebook: Path) -> None:
    """They assume what the package's docstring says: numpy, torch and the face are imported."""
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for tests in _examples(face).values():
        for test in tests:
            runner.run(test)
    assert runner.tries and not runner.failures


def test_every_exported_name_has_an_example() -> None:
    assert [name for name, tests in _examples(pipeline).items() if not tests] == []


@pytest.mark.parametrize("name", ["data_prep", "pipeline", "data_prep.volume.transforms"])
def test_the_examples_of_modules_hold(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried and not failed
