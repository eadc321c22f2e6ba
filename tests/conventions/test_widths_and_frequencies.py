"""Widths in pixels, the centre of k-space, the columns of a mask, against numpy and scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from pipeline.analysis.baselines import gradient
from pipeline.analysis.operators import (
    Composed,
    Downsampling,
    GaussianBlur,
    MaskedFourier,
    cartesian_mask,
    centre_columns,
    complex_noise,
    fft2c,
    ifft2c,
    sampled_centre,
)
from pipeline.analysis.problems import covered, finer_affine, stack_affine
from pipeline.blur.kernel_loss import kernel_width

SHAPES = [(24, 30), (31, 24), (25, 33)]


def image(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [1.5, 2.5])
def test_a_blur_of_so_many_pixels_is_scipy_s(shape: tuple[int, int], width: float) -> None:
    x = image(shape)
    found = GaussianBlur(width, shape).forward(torch.from_numpy(x)[None, None])[0, 0].numpy()
    near = ndimage.gaussian_filter(x, width, mode="wrap", truncate=8)
    np.testing.assert_allclose(found, near, atol=2e-4)
    exact = np.fft.ifft2(ndimage.fourier_gaussian(np.fft.fft2(x), width)).real
    np.testing.assert_allclose(found, exact, atol=1e-9)


def test_a_blurred_point_has_the_blur_s_width_along_rows_and_columns() -> None:
    point = torch.zeros(1, 1, 41, 35, dtype=torch.float64)
    point[0, 0, 20, 17] = 1
    found = GaussianBlur(2.0, (41, 35)).forward(point)[0, 0].numpy()
    rows, columns = np.indices(found.shape)
    assert np.sqrt((found * (rows - 20) ** 2).sum()) == pytest.approx(2.0, abs=1e-3)
    assert np.sqrt((found * (columns - 17) ** 2).sum()) == pytest.approx(2.0, abs=1e-3)


def test_a_degradation_blurs_first_and_then_takes_the_mean_of_squares_of_pixels() -> None:
    x = image((24, 36))
    both = Composed(GaussianBlur(1.7, (24, 36)), Downsampling(3, (24, 36)))
    found = both.forward(torch.from_numpy(x)[None, None])[0, 0].numpy()
    blurred = np.fft.ifft2(ndimage.fourier_gaussian(np.fft.fft2(x), 1.7)).real
    np.testing.assert_allclose(found, blurred.reshape(8, 3, 12, 3).mean(axis=(1, 3)), atol=1e-9)
    point = torch.zeros(1, 1, 6, 6)
    point[0, 0, 2, 3] = 1
    assert Downsampling(3, (6, 6)).forward(point)[0, 0].tolist() == [
        [0, pytest.approx(1 / 9)],
        [0, 0],
    ]


def test_a_kernel_s_width_is_its_root_second_moment_in_pixels() -> None:
    """Half of the mass in the middle, a quarter 2 pixels up, a quarter 2 to the right."""
    kernel = torch.zeros(1, 1, 5, 5)
    kernel[0, 0, 2, 2], kernel[0, 0, 0, 2], kernel[0, 0, 2, 4] = 0.5, 0.25, 0.25
    assert kernel_width(kernel).item() == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_origin_of_image_and_k_space_is_the_middle_pixel(shape: tuple[int, int]) -> None:
    """(H//2, W//2): a constant is all there, with its size √(HW), and a point there is constant."""
    height, width = shape
    size = np.sqrt(height * width)
    flat = fft2c(torch.ones(shape, dtype=torch.float64)).numpy()
    expected = np.zeros(shape)
    expected[height // 2, width // 2] = size
    np.testing.assert_allclose(flat, expected, atol=1e-10)
    point = torch.zeros(shape, dtype=torch.float64)
    point[height // 2, width // 2] = 1
    np.testing.assert_allclose(fft2c(point).numpy(), np.full(shape, 1 / size), atol=1e-12)
    # One column to the right is one period more along the columns, with e^(−i…) forwards.
    wave = torch.zeros(shape, dtype=torch.complex128)
    wave[height // 2, width // 2 + 1] = 1
    columns = np.arange(width) - width // 2
    expected = np.exp(2j * np.pi * columns / width) / size
    np.testing.assert_allclose(ifft2c(wave).numpy(), np.broadcast_to(expected, shape), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_lowest_column_alone_gives_the_mean_of_every_row(shape: tuple[int, int]) -> None:
    """So masks and operator agree where the centre is, and that columns are phase encodings."""
    mask = cartesian_mask(shape, shape[1], centre_fraction=1 / shape[1])
    assert mask.sum() == shape[0]
    assert mask[:, shape[1] // 2].all()
    x = image(shape)
    operator = MaskedFourier(mask.double())
    measured = operator.forward(torch.from_numpy(x)[None, None])
    found = operator.adjoint(measured)[0, 0].numpy()
    np.testing.assert_allclose(found, np.broadcast_to(x.mean(1)[:, None], shape), atol=1e-10)


@pytest.mark.parametrize(
    ("width", "fraction", "columns"),
    [
        (64, 0.125, range(28, 36)),
        (64, 0.08, range(30, 35)),
        (33, 0.1, range(15, 18)),
        (32, 0.0001, range(16, 17)),
        (8, 1.0, range(8)),
    ],
)
def test_the_columns_in_the_middle_by_hand(width: int, fraction: float, columns: range) -> None:
    assert centre_columns(width, fraction) == columns


@pytest.mark.parametrize("kind", ["variable_density", "equispaced"])
@pytest.mark.parametrize(("acceleration", "columns"), [(4, 16), (3, 21), (2.5, 26), (8, 8)])
def test_an_acceleration_is_the_share_of_all_columns_centre_included(
    kind: str, acceleration: float, columns: int
) -> None:
    mask = cartesian_mask((5, 64), acceleration, 0.08, kind, seed=3)  # type: ignore[arg-type]
    assert mask.shape == (5, 64)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert (mask == mask[:1]).all()  # whole columns
    assert mask[0].sum() == columns
    assert mask[:, 30:35].all()


def test_the_density_of_a_mask_falls_with_the_square_of_the_distance() -> None:
    """One column beside the middle one of 16: drawn with (1 − |i − 8|/9)² over its sum."""
    masks = [cartesian_mask((1, 16), 8, 1 / 16, seed=seed)[0] for seed in range(3000)]
    counts = torch.stack(masks).sum(dim=0).numpy()
    assert counts[8] == 3000
    weight = (1 - np.abs(np.arange(16) - 8) / 9) ** 2
    weight[8] = 0
    others = np.delete(counts, 8)
    expected = 3000 * np.delete(weight, 8) / weight.sum()
    assert stats.chisquare(others, expected).pvalue > 0.01


def test_equispaced_columns_are_evenly_apart_outside_the_centre() -> None:
    mask = cartesian_mask((1, 64), 4, 1 / 64, "equispaced", seed=0)[0].numpy()
    others = np.setdiff1d(np.arange(64), [32])
    places = np.flatnonzero(mask[others])
    assert len(places) == 15
    assert set(np.diff(places)) <= {4, 5}  # 63 / 15 = 4.2


def test_the_sampled_centre_is_counted_both_ways() -> None:
    mask = torch.zeros(4, 12)
    mask[:, 5:9] = 1  # of 4 … 8 about column 6 the band is symmetric: 5, 6, 7
    assert sampled_centre(mask) == 3
    mask[:, 4] = 1
    assert sampled_centre(mask) == 5
    mask[0, 6] = 0
    assert sampled_centre(mask) == 0


def test_the_deviation_of_noise_is_that_of_each_real_number() -> None:
    generator = torch.Generator().manual_seed(0)
    real = complex_noise(torch.zeros(50_000), 0.3, generator)
    both = complex_noise(torch.zeros(50_000, dtype=torch.complex64), 0.3, generator)
    for part in (real, both.real, both.imag):
        assert part.std().item() == pytest.approx(0.3, rel=0.02)


def test_an_interval_of_few_draws_still_holds_nine_of_ten() -> None:
    """Truth and 5 draws of one distribution at every pixel: Student's t, not the normal."""
    random = np.random.default_rng(0)
    truth, draws = random.normal(1, 0.1, 200_000), random.normal(1, 0.1, (5, 200_000))
    mean, deviation = draws.mean(axis=0), draws.std(axis=0, ddof=1)
    found = covered(*(torch.from_numpy(v) for v in (truth, mean, deviation)), 5)
    assert found == pytest.approx(0.9, abs=0.003)
    # The head is above 0: what is 0 does not count.
    zero = torch.tensor([0.0, 0.5, 0.5, 0.5, 0.5])
    missed = torch.tensor([0.0, 0.5, 0.5, 0.5, 0.9])
    assert covered(zero, missed, torch.full((5,), 1e-3), 5) == 0.75


def test_the_gradient_is_of_the_next_row_and_the_next_column() -> None:
    down, right = gradient(torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]))
    assert down.tolist() == [[7, 14, 28], [0, 0, 0]]
    assert right.tolist() == [[1, 2, 0], [8, 16, 0]]


def test_finer_pixels_share_the_outer_edge_of_the_picture() -> None:
    """Pixels of 4 mm, the first centred at 10 mm: its edge is at 8, so halves lie at 9, 11, …"""
    affine = np.diag([4.0, 4.0, 1.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    fine = finer_affine(affine, 2)
    np.testing.assert_allclose(fine @ [0, 0, 0, 1], [9, 19, 30, 1])
    np.testing.assert_allclose(fine @ [1, 3, 0, 1], [11, 25, 30, 1])
    third = finer_affine(affine, 4)
    np.testing.assert_allclose(third @ [0, 0, 0, 1], [8.5, 18.5, 30, 1])


def test_a_stack_begins_at_its_first_slice_and_steps_by_their_distance() -> None:
    affine = np.diag([1.0, 1.0, 1.5, 1.0])
    affine[2, 3] = -40
    stacked = stack_affine(affine, (7, 10, 13))
    assert stacked is not None
    np.testing.assert_allclose(stacked @ [0, 0, 0, 1], [0, 0, -40 + 7 * 1.5, 1])
    np.testing.assert_allclose(stacked @ [0, 0, 2, 1], [0, 0, -40 + 13 * 1.5, 1])
