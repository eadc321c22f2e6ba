"""Reconstruction terms: what they are equal to, and numbers that must not drift."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from pipeline.blur.spectrum import transfer_function
from pipeline.losses.base import ReconstructionTerm, Scale
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.registry import TERMS, build_term

# term, form, scale -> nats of the two images of `_pair`, kernel of `_kernel`, C = 0.025.
GOLDEN = """
gaussian wiener            0.1        -73.450210   -69.581820
gaussian wiener            optimal    -80.356699   -73.090993
gaussian positive_definite 0.1        -73.450210   -69.581820
gaussian positive_definite optimal    -80.356699   -73.090993
blur     wiener            0.1       -120.038256   -92.574331
blur     wiener            optimal   -121.259964   -92.646989
blur     positive_definite 0.1       -130.650283   -93.271435
blur     positive_definite optimal   -130.676308   -93.298210
"""


def _pair() -> tuple[Tensor, Tensor]:
    """Two images and reconstructions by formula, (2,1,8,8) float64."""
    y, x = torch.meshgrid(*[torch.arange(8, dtype=torch.float64)] * 2, indexing="ij")
    first = 0.5 + 0.4 * torch.sin(0.9 * x + 0.3 * y)
    second = 0.5 + 0.4 * torch.cos(0.2 * x * y)
    images = torch.stack([first, second])[:, None]
    return images, 0.8 * images + 0.1 * images.roll(1, dims=-1)


def _kernel() -> Tensor:
    """An asymmetric kernel for each of the two images, (2,1,3,3) float64."""
    logits = torch.arange(18, dtype=torch.float64).reshape(2, 9).sin()
    logits[:, 4] += 2.0
    return logits.softmax(dim=1).reshape(2, 1, 3, 3)


def _transfer() -> Tensor:
    return transfer_function(_kernel(), (8, 8))


# Terms that the optimal scale is a closed form for.
SCALED = ("blur", "gaussian", "laplace")


def _term(term: str, form: str = "wiener", scale: str = "optimal") -> ReconstructionTerm:
    value = scale if scale == "optimal" else float(scale)
    config = LikelihoodConfig(term=term, form=form, scale=value, constant=0.025)  # type: ignore[arg-type]
    return build_term(config, (1, 8, 8))


@pytest.mark.parametrize("line", GOLDEN.strip().splitlines())
def test_golden_values(line: str) -> None:
    term, form, scale, *expected = line.split()
    found = _term(term, form, scale)(*_pair(), _transfer()).value
    assert found.tolist() == pytest.approx([float(word) for word in expected], abs=2e-6)


def test_the_gaussian_term_is_the_normal_distribution() -> None:
    images, reconstructions = _pair()
    found = _term("gaussian", scale="0.1")(images, reconstructions, None)
    expected = -Normal(reconstructions, 0.1).log_prob(images).sum(dim=(1, 2, 3))
    torch.testing.assert_close(found.value, expected, rtol=1e-12, atol=0)
    assert found.scale is not None and found.scale.item() == pytest.approx(0.1)


def test_the_gaussian_term_at_its_optimum_knows_the_mean_squared_error() -> None:
    images, reconstructions = _pair()
    found = _term("gaussian")(images, reconstructions, None)
    error = (images - reconstructions).square().mean().item()
    assert found.scale.item() == pytest.approx(math.sqrt(error))
    expected = 32 * (math.log(error) + 1 + math.log(2 * math.pi))
    assert found.value.mean().item() == pytest.approx(expected)


@pytest.mark.parametrize("scale", ["optimal", "0.1"])
@pytest.mark.parametrize("form", ["wiener", "positive_definite"])
def test_blur_without_a_kernel_is_gaussian(form: str, scale: str) -> None:
    blur, gaussian = _term("blur", form, scale), _term("gaussian", form, scale)
    one, two = (term(*_pair(), None) for term in (blur, gaussian))
    assert torch.equal(one.value, two.value) and torch.equal(one.scale, two.scale)


def test_gaussian_does_not_look_at_a_kernel() -> None:
    one, two = (_term("gaussian")(*_pair(), kernel) for kernel in (None, _transfer()))
    assert torch.equal(one.value, two.value)


def test_a_kernel_that_does_not_blur_gives_gaussian_up_to_the_scale() -> None:
    """λ is then the same everywhere, and the optimal σ takes it up."""
    delta = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    delta[..., 1, 1] = 1.0
    blur = _term("blur")(*_pair(), transfer_function(delta, (8, 8)))
    gaussian = _term("gaussian")(*_pair(), None)
    torch.testing.assert_close(blur.value, gaussian.value, rtol=1e-10, atol=0)
    assert (blur.scale / gaussian.scale).item() == pytest.approx(1 / 1.025)


def test_the_same_error_costs_more_where_the_model_blurs() -> None:
    """The point of the method: what a known blur explains is weighted up, C small."""
    kernel = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
    term = _term("blur", "positive_definite", "0.1")
    coarse = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    fine = coarse * torch.tensor([1.0, -1.0]).repeat(4)
    transfer = transfer_function(kernel, (8, 8))
    low, high = (term(0.1 * e, torch.zeros_like(e), transfer).value.item() for e in (coarse, fine))
    assert high > low


def test_what_each_term_says_of_itself() -> None:
    densities = {"blur", "fourier_gaussian", "gaussian", "laplace", "robust"}
    distances = {"focal_frequency", "ms_ssim", "ssim", "vgg", "watson_dft"}
    assert TERMS.keys() == densities | distances
    assert {name for name, term in TERMS.items() if term.density} == densities
    assert [name for name, term in TERMS.items() if term.needs_kernel] == ["blur"]


def test_an_unknown_term_names_all_terms() -> None:
    with pytest.raises(ValueError, match=r"likelihood\.term.*blur, .*gaussian, .*'bluur'"):
        _term("bluur")


@pytest.mark.parametrize(
    ("key", "value"),
    [("scale", 0.0), ("scale", -1.0), ("constant", 0.0), ("kernel_size", 4), ("kernel_size", 1),
     ("warmup_epochs", -1)],
)  # fmt: skip
def test_a_constant_that_cannot_be_is_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"likelihood\.{key}"):
        LikelihoodConfig(**{key: value})  # type: ignore[arg-type]


def test_a_fixed_scale_is_used_always() -> None:
    scale = Scale(0.3)
    for training in (True, False):
        assert scale.train(training)(torch.tensor(7.0)).item() == pytest.approx(0.3)
    assert scale.running.isnan()


def test_an_optimal_scale_is_the_batch_s_in_training() -> None:
    optimal = torch.tensor(0.2, requires_grad=True)
    found = Scale("optimal")(optimal)
    assert found.item() == pytest.approx(0.2)
    assert not found.requires_grad


def test_an_optimal_scale_is_the_running_one_in_evaluation() -> None:
    """The geometric mean of the batches', newer ones by the momentum; never the judged batch's."""
    scale = Scale("optimal", momentum=0.9)
    for value in (0.1, 0.4):
        scale(torch.tensor(value))
    scale.eval()
    expected = math.exp(0.9 * math.log(0.1) + 0.1 * math.log(0.4))
    assert scale(torch.tensor(5.0)).item() == pytest.approx(expected, rel=1e-5)
    assert scale(torch.tensor(0.001)).item() == pytest.approx(expected, rel=1e-5)


def test_evaluation_does_not_move_the_running_scale() -> None:
    term = _term("gaussian")
    term(*_pair(), None)
    before = term.state_dict()["scale.running"].clone()
    term.eval()(*_pair(), None)
    assert torch.equal(term.state_dict()["scale.running"], before)


@pytest.mark.parametrize("term", SCALED)
def test_the_gradient_at_the_optimal_scale_is_that_of_the_fitted_one(term: str) -> None:
    """σ̂ as a constant: its own gradient vanishes at the optimum, of the batch's sum."""
    images, reconstructions = _pair()
    left = reconstructions.clone().requires_grad_()
    found = _term(term)(images, left, _transfer())
    found.value.sum().backward()
    assert found.scale is not None
    right = reconstructions.clone().requires_grad_()
    fixed = _term(term, scale=str(found.scale.item()))
    fixed(images, right, _transfer()).value.sum().backward()
    assert left.grad is not None and right.grad is not None
    torch.testing.assert_close(left.grad, right.grad, rtol=1e-6, atol=1e-9)
