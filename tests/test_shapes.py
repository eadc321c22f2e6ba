"""Tensors in public signatures say their shapes, and what they say holds."""

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

import pipeline
from pipeline.blur import kernel_loss, likelihood, spectrum
from pipeline.losses.law import GaussianLaw
from pipeline.metrics import sharpness

PACKAGE = Path(__file__).parents[1] / "pipeline"
MODULES = [path for room in ("blur", "data", "losses", "metrics", "models")
           for path in sorted((PACKAGE / room).glob("*.py"))]  # fmt: skip


def _annotations(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Names and annotations of public attributes, arguments and results, methods included."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _annotations(node.body)
        elif isinstance(node, ast.AnnAssign):
            yield ast.unparse(node.target), node.annotation
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [*node.args.args, *node.args.kwonlyargs]
            for said in (*(argument.annotation for argument in arguments), node.returns):
                if said is not None:
                    yield node.name, said


def _has_bare_tensor(said: ast.AST) -> bool:
    if isinstance(said, ast.Subscript) and ast.unparse(said.slice).startswith("(Tensor, '"):
        return False
    return ast.unparse(said) == "Tensor" or any(map(_has_bare_tensor, ast.iter_child_nodes(said)))


def test_no_tensor_is_without_a_shape() -> None:
    bare = [
        f"{path.parent.name}/{path.name}: {name}"
        for path in MODULES
        for name, said in _annotations(ast.parse(path.read_text(encoding="utf-8")).body)
        if _has_bare_tensor(said)
    ]
    assert bare == []


IMAGE = torch.rand(2, 3, 12, 20)
OTHER = torch.rand(2, 3, 12, 20)
KERNEL = torch.rand(2, 1, 5, 5)
TRANSFER = spectrum.transfer_function(KERNEL, (12, 20))
PRECISION = spectrum.precision(TRANSFER, 0.1)
CALLS: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (spectrum.transfer_function, (KERNEL, (12, 20))),
    (spectrum.precision, (TRANSFER, 0.1)),
    (spectrum.half_spectrum, (IMAGE,)),
    (spectrum.half_spectrum_sum, (PRECISION, 20)),
    (spectrum.half_spectrum_weights, (20, IMAGE)),
    (spectrum.power, (TRANSFER,)),
    (kernel_loss.kernel_loss, (IMAGE, OTHER, TRANSFER)),
    (kernel_loss.kernel_loss, (IMAGE, OTHER, TRANSFER[:1])),
    (kernel_loss.kernel_width, (KERNEL,)),
    (likelihood.gaussian_nll, (IMAGE, PRECISION, 0.1)),
    (likelihood.gaussian_nll, (IMAGE, PRECISION[:1], torch.rand(2))),
    (likelihood.quadratic_form, (spectrum.half_spectrum(IMAGE), PRECISION, 20)),
    (likelihood.log_determinant, (PRECISION, (3, 12, 20))),
    (likelihood.sample_residual, (PRECISION, torch.tensor(0.1), 3, 20)),
    (likelihood.whiten, (IMAGE, PRECISION, 0.1)),
    (likelihood.marginal_variance, (PRECISION, 0.1, 20)),
    (GaussianLaw(OTHER, PRECISION).nll, (IMAGE,)),
    (GaussianLaw(torch.tensor(0.1), PRECISION[:1]).whiten, (IMAGE,)),
    (pipeline.psnr, (IMAGE, OTHER)),
    (pipeline.ssim, (IMAGE, OTHER)),
    (pipeline.blur_effect, (IMAGE,)),
    (pipeline.high_frequency_ratio, (IMAGE, OTHER[:1])),
    (sharpness.radial_power, (IMAGE,)),
    (sharpness.gradient_magnitude, (IMAGE,)),
]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a tensor has one of the shapes of an annotation; no matter of anything else."""
    if not isinstance(value, Tensor):
        return True
    choices = [hint] if inspect.isclass(hint) else list(get_args(hint))
    shapes = [c for c in choices if inspect.isclass(c) and issubclass(c, AbstractArray)]
    return any(isinstance(value, shape) for shape in shapes)


@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_shapes_that_are_said_are_those_of_the_values(
    function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    hints = get_type_hints(function)
    bound = inspect.signature(function).bind(*arguments).arguments
    result = function(*arguments)
    with jaxtyped("context"):
        for name, value in [*bound.items(), ("return", result)]:
            assert _fits(value, hints[name]), f"{name} {tuple(value.shape)}: {hints[name]}"


def test_a_wrong_shape_is_noticed() -> None:
    hints = get_type_hints(likelihood.gaussian_nll)
    with jaxtyped("context"):
        assert _fits(IMAGE, hints["residual"])
        assert not _fits(PRECISION[..., :-1], hints["precision"])
        assert not _fits(torch.rand(3), hints["scale"])
