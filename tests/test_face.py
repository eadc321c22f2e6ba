"""What a notebook sees: `import data_prep`, `import pipeline`, and nothing else."""

import doctest
import inspect
import os
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
# Exported as a module: `pipeline.package.load`.
SUBMODULES = {"package"}


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


def test_a_users_own_pipeline_hides_nothing_from_sharp_vae(tmp_path: Path) -> None:
    """Where Python starts in a folder that has one; its other modules are found as ever."""
    for name in ("pipeline", "data_prep", "other"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)" if name != "other" else "")
    program = "import sharp_vae, other; from pipeline import VAE; print(sharp_vae.VAE is VAE)"
    for words in (["-c", program], ["-m", "sharp_vae", "train", "--help"]):
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, check=True,
        )  # fmt: skip
        assert "True" in done.stdout or "--training.epochs" in done.stdout


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
    metadata = pipeline.package.describe(
        store.image_shape,
        pipeline.ModelConfig(levels=[pipeline.Level(8, 2)], width=4, max_width=8),
        pipeline.LikelihoodConfig(term="gaussian", scale=0.1),
        prepare=store.manifest["configuration"],
    )
    package = pipeline.DecoderPackage(metadata)
    pipeline.package.write(folder / "work/packages/demo", package)
    return folder


@pytest.fixture
def in_notebook(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(notebook)
    monkeypatch.setenv("WORK", "work")
    yield notebook


def _examples(face: ModuleType) -> dict[str, list[doctest.DocTest]]:
    given = {name: getattr(module, name) for module in FACES for name in module.__all__}
    find = doctest.DocTestFinder().find
    return {
        name: [
            test
            for test in find(given[name], name, globs={"torch": torch, "Path": Path, **given})
            if test.examples
        ]
        for name in face.__all__
        if not inspect.ismodule(given[name])
    }


@name_of
def test_the_examples_of_exported_names_hold(face: ModuleType, in_notebook: Path) -> None:
    """They take the names of both faces, torch and Path as imported."""
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for tests in _examples(face).values():
        for test in tests:
            runner.run(test)
    assert runner.tries and not runner.failures


def test_every_exported_name_has_an_example() -> None:
    assert [name for name, tests in _examples(pipeline).items() if not tests] == []


def test_a_notebook_needs_the_faces_alone(in_notebook: Path) -> None:
    """From a store and a configuration to a gradient, scores, and a reconstruction by a package."""
    store = pipeline.open_store("demo", Path("work"))
    entry = store.subjects("test")[0]
    values = store.images(entry)
    assert values.dtype == np.float32 and 0 <= values.min() < values.max() <= 1
    images = pipeline.SliceDataset(store, [entry]).of_subject(0)
    torch.testing.assert_close(images, torch.from_numpy(values))

    config = pipeline.load_config(
        "configs/demo.yaml", "--training.epochs=3", "--model.levels=[{side: 8, channels: 2}]"
    )
    assert config.training.epochs == 3
    with pytest.raises(pipeline.InputError, match="nowhere"):
        pipeline.load_config("nowhere.yaml")
    model = pipeline.VAE(store.image_shape, config.model)
    found = model(images)
    term = pipeline.build_term(
        pipeline.LikelihoodConfig(term="gaussian", scale=0.1), store.image_shape
    )
    nats = term(images, found.reconstruction).value
    (nats + found.posterior.rate()).mean().backward()
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())

    kernel = torch.zeros(1, 1, 5, 5)
    kernel[..., 2, 2] = 1
    transfer = pipeline.transfer_function(kernel, (32, 32))
    assert pipeline.kernel_loss(images, images, transfer).max() < 1e-6
    weight = pipeline.precision(transfer, 1.0, "positive_definite")  # 1/2 at all frequencies
    residual = images - found.reconstruction
    torch.testing.assert_close(pipeline.gaussian_nll(residual, weight, 0.1 / 2**0.5), nats)
    assert pipeline.psnr(0 * images, 0 * images + 0.1).mean() == pytest.approx(20, abs=1e-3)
    assert pipeline.ssim(images, images).min() == pytest.approx(1)
    assert pipeline.high_frequency_ratio(images, images) == 1

    package = pipeline.package.load("work/packages/demo")
    scanner = pipeline.MaskedFourier(pipeline.cartesian_mask((32, 32), 2))
    measured = scanner.forward(images)
    guess = scanner.adjoint(measured)
    solution = pipeline.solve(
        package, scanner, measured, 0.01, guess, pipeline.SolverSettings(20, 20)
    )
    misfit = (scanner.forward(solution.image) - measured).abs().mean()
    assert misfit < (scanner.forward(solution.drawn) - measured).abs().mean()


@pytest.mark.parametrize(
    "name", ["data_prep", "pipeline", "sharp_vae", "data_prep.volume.transforms"]
)
def test_the_examples_of_modules_hold(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried and not failed
