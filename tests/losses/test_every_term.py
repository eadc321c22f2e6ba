"""Laws that every reconstruction term obeys."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pipeline.blur.spectrum import transfer_function
from pipeline.errors import InputError
from pipeline.losses.base import ReconstructionTerm
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.registry import TERMS, build_term

Shape = tuple[int, int, int]
SHAPES = [(1, 32, 32), (3, 32, 32), (1, 64, 64)]
DISTANCES = sorted(name for name, term in TERMS.items() if not term.density)

every_term = pytest.mark.parametrize("name", sorted(TERMS))
# VGG takes most of the time, and how its channels are filled is tested apart.
every_shape = pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in sorted(TERMS) for shape in SHAPES[: 1 if name == "vgg" else None]],
)

# Values of the two images of `_images` moved by a pixel, 32², float64, optimal scale.
GOLDEN = """
blur             -529.356742 -565.121152
focal_frequency  1702.655748 1760.810437
fourier_gaussian -576.369351 -618.956336
gaussian         -449.652871 -474.688714
laplace         -1112.337456 -1083.606366
ms_ssim           125.025247 135.547186
robust           -752.715555 -741.830527
ssim              288.680818 314.527992
vgg              5798.468717 5678.682556
watson_dft        479.490958 426.144746
"""


def _images(shape: Shape = (1, 32, 32), count: int = 2) -> Tensor:
    """Waves with edges in a black surround, by formula, float64 in [0,1]."""
    channels, height, width = shape
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, dtype=torch.float64),
        torch.linspace(-1, 1, width, dtype=torch.float64),
        indexing="ij",
    )
    images = []
    for index in range(count * channels):
        wave = torch.sin((5 + index) * x + 3 * y) * torch.cos((4 - index) * y - x)
        head = torch.hypot(x, y) < 0.9
        images.append((0.5 + 0.3 * wave + 0.15 * (wave > 0.2)) * head)
    return torch.stack(images).reshape(count, channels, height, width)


def _blurred(images: Tensor, width: float) -> Tensor:
    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, width, width), mode="wrap"))


def _noisy(images: Tensor, size: float) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return images + size * noise


def _transfer(images: Tensor) -> Tensor:
    """A kernel a little wider than a point, for each image."""
    kernel = torch.full((len(images), 1, 3, 3), 0.05, dtype=images.dtype)
    kernel[..., 1, 1] = 0.6
    return transfer_function(kernel, (images.shape[-2], images.shape[-1]))


def _built(name: str, shape: Shape = (1, 32, 32)) -> ReconstructionTerm:
    try:
        return build_term(LikelihoodConfig(term=name), shape)
    except InputError as error:
        pytest.skip(str(error))


def _fitted(name: str, shape: Shape = (1, 32, 32)) -> ReconstructionTerm:
    """In evaluation, after a training batch with errors of 0.05; float64."""
    term = _built(name, shape).double()
    images = _images(shape)
    with torch.no_grad():
        term(images, _noisy(images, 0.05), _transfer(images))
    return term.eval()


def _value(term: ReconstructionTerm, images: Tensor, reconstructions: Tensor) -> Tensor:
    return term(images, reconstructions, _transfer(images)).value


@every_term
def test_golden_values(name: str) -> None:
    expected = dict(line.split(maxsplit=1) for line in GOLDEN.strip().splitlines())[name]
    images = _images()
    found = _value(_built(name).double(), images, images.roll(1, -1)).tolist()
    assert found == pytest.approx([float(word) for word in expected.split()], rel=1e-6)


@every_shape
def test_equal_images_have_the_least_value_and_distance_zero(name: str, shape: Shape) -> None:
    images = _images(shape)
    term = _fitted(name, shape)
    least = _value(term, images, images)
    assert least.shape == (2,)
    for other in (_blurred(images, 0.5), _noisy(images, 0.01), images + 0.05, images.roll(1, -1)):
        assert (_value(term, images, other) > least).all()
    if not term.density:
        torch.testing.assert_close(least, torch.zeros_like(least), rtol=0, atol=1e-9)


@every_shape
def test_more_blur_and_more_noise_cost_more(name: str, shape: Shape) -> None:
    images = _images(shape)
    term = _fitted(name, shape)
    blurs = [_value(term, images, _blurred(images, width)) for width in (0.0, 0.5, 1.0, 2.0)]
    noises = [_value(term, images, _noisy(images, size)) for size in (0.0, 0.02, 0.05, 0.1)]
    for values in (blurs, noises):
        assert all((more > less).all() for less, more in pairwise(values))


@every_term
def test_no_image_counts_for_another(name: str) -> None:
    images = _images(count=3)
    term, others = _fitted(name), _noisy(images, 0.05)
    together = _value(term, images, others)
    alone = torch.cat([_value(term, images[i : i + 1], others[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_don_t_look_at_the_batch_in_training_either(name: str) -> None:
    images = _images(count=3)
    others = _noisy(images, 0.05)
    together = _built(name).double()(images, others, None).value
    alone = [_built(name).double()(images[i : i + 1], others[i : i + 1], None) for i in range(3)]
    torch.testing.assert_close(together, torch.cat([a.value for a in alone]), rtol=1e-10, atol=0)


def _flat(value: float) -> Tensor:
    return torch.full((2, 1, 32, 32), value)


@pytest.mark.parametrize("training", [True, False])
@every_term
def test_values_and_gradients_are_finite_on_flat_and_black_images(
    name: str, training: bool
) -> None:
    waves = _images().float()
    term = _fitted(name).float()
    for image in (_flat(0.0), _flat(0.5), _flat(1.0), waves):
        for other in (_flat(0.0), _flat(0.5), _flat(1.0), image, image + 1e-7, waves):
            other = other.clone().requires_grad_()
            value = _value(term.train(training), image, other)
            value.sum().backward()
            assert value.isfinite().all() and other.grad is not None
            assert other.grad.isfinite().all()
            assert all(p.grad is None or p.grad.isfinite().all() for p in term.parameters())


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("name", sorted(TERMS.keys() - {"focal_frequency"}))
def test_the_gradient_is_the_slope(name: str, shape: Shape) -> None:
    """Along some directions; the focal weight is a constant by definition, tested apart."""
    images = _images(shape)
    term = _fitted(name, shape)
    point = _noisy(images, 0.05).requires_grad_()
    _value(term, images, point).sum().backward()
    assert point.grad is not None
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = torch.randn(point.shape, generator=generator, dtype=point.dtype)
        size = 1e-8 if name == "vgg" else 1e-6  # relu has a kink in each of its many units
        step = size * direction
        with torch.no_grad():
            ends = [_value(term, images, point + sign * step).sum() for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * size)
        assert slope.item() == pytest.approx((point.grad * direction).sum().item(), rel=1e-4)


@every_term
def test_half_precision_around_a_term_changes_nothing(name: str) -> None:
    images = _images().float()
    others = _noisy(images, 0.05)
    plain = _value(_built(name), images, others)
    with torch.autocast("cpu", torch.bfloat16):
        within = _value(_built(name), images, others)
    assert within.dtype == torch.float32 and torch.equal(plain, within)
    narrow = _built(name)(images.bfloat16(), others.bfloat16(), _transfer(images))
    assert narrow.value.dtype == torch.float32


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_of_the_order_of_the_number_of_values(name: str) -> None:
    """At errors of 0.05, between a hundredth and ten times it."""
    for shape in SHAPES:
        images = _images(shape)
        per_value = _value(_fitted(name, shape), images, _noisy(images, 0.05)) / math.prod(shape)
        assert (per_value > 0.01).all() and (per_value < 10).all(), per_value
