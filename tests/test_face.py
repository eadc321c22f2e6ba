"""What a notebook sees: `import data_prep`, `import pipeline`, and nothing else."""

import ast
import doctest
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import data_prep
import pipeline

FACES = (data_prep, pipeline)
name_of = pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)


@name_of
def test_every_name_of_the_face_is_there(face: ModuleType) -> None:
    for name in face.__all__:
        assert getattr(face, name) is not None
    assert sorted(dir(face)) == sorted(face.__all__) == sorted(face._HOME)
    with pytest.raises(AttributeError, match="colour"):
        _ = face.colour


@name_of
def test_type_checkers_and_programs_find_the_same_names(face: ModuleType) -> None:
    """The imports that a type checker reads are those that are made when a name is used."""
    assert face.__file__ is not None
    found = {
        alias.name: (node.module or "").removeprefix(f"{face.__name__}.")
        for node in ast.walk(ast.parse(Path(face.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(face.__name__)
        for alias in node.names
    }
    assert found == face._HOME


@name_of
def test_importing_the_face_loads_nothing_heavy(face: ModuleType) -> None:
    heavy = "{'torch', 'numpy', 'monai', 'mlflow', 'nibabel', 'scipy', 'jsonargparse'}"
    program = f"import sys, {face.__name__}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", ["data_prep", "pipeline", "data_prep.volume.transforms"])
def test_examples_in_docstrings_hold(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried and not failed


def test_a_notebook_needs_the_face_alone(tiny_store: data_prep.Store) -> None:
    store = data_prep.Store.open(tiny_store.path)
    entry = store.subjects("test")[0]
    values = store.images(entry)
    assert values.dtype == np.float32 and 0 <= values.min() < values.max() <= 1
    data = pipeline.SliceDataset(store, [entry])
    images = data.of_subject(0)
    torch.testing.assert_close(images, torch.from_numpy(values))

    config = pipeline.load_config("configs/demo.yaml", "--training.epochs=3")
    assert config.training.epochs == 3
    model = pipeline.VAE(
        store.image_shape,
        pipeline.ModelConfig(levels=[pipeline.Level(8, 2)], width=4, max_width=8),
    )
    reconstruction = model(images).reconstruction
    term = pipeline.build_term(
        pipeline.LikelihoodConfig(term="gaussian", scale=0.1), store.image_shape
    )
    kernel = torch.zeros(1, 1, 5, 5)
    kernel[..., 2, 2] = 1
    transfer = pipeline.transfer_function(kernel, (32, 32))
    weight = pipeline.precision(transfer, 1.0, "positive_definite")  # 1/2 at all frequencies
    nats = pipeline.gaussian_nll(images - reconstruction, weight, 0.1 / 2**0.5)
    torch.testing.assert_close(nats, term(images, reconstruction).value)
    assert pipeline.psnr(0 * images, 0 * images + 0.1).mean() == pytest.approx(20, abs=1e-3)
    with pytest.raises(pipeline.InputError, match="nowhere"):
        pipeline.load_config("nowhere.yaml")


def test_k_space_is_the_faces_as_well() -> None:
    """Of all samples the adjoint is the inverse; of half of them it is not."""
    image = torch.rand(1, 1, 32, 32)
    for acceleration in (1, 2):
        mask = pipeline.cartesian_mask((32, 32), acceleration, 0.25)
        assert mask.mean() == pytest.approx(1 / acceleration)
        scanner = pipeline.MaskedFourier(mask)
        error = (scanner.adjoint(scanner.forward(image)) - image).abs().max()
        assert (error < 1e-5) == (acceleration == 1)


@name_of
def test_no_module_hides_a_name_of_the_face(face: ModuleType) -> None:
    """Importing a module sets an attribute of its name, which would then be the module."""
    assert face.__file__ is not None
    modules = {path.stem for path in Path(face.__file__).parent.iterdir()}
    assert not modules & set(face.__all__)
