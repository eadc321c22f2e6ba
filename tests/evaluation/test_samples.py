"""The anatomy of samples is judged at low resolution, beside that of other subjects."""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.evaluation.samples import coarse, sample_scores

CPU = torch.device("cpu")


class Means:
    """Features are the mean of the image's quarters."""

    size = 4

    def features(self, images: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 2).flatten(1)


def _images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_averages_are_of_four_by_four_pixels() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 4:8, 8:12] = 1.0
    expected = torch.zeros(1, 1, 8, 8)
    expected[0, 0, 1, 2] = 1.0
    assert torch.equal(coarse(image), expected)


def test_other_people_are_the_yardstick() -> None:
    training, held_out = coarse(_images(40, 0)), coarse(_images(40, 1))
    dark = 0.5 * held_out
    found = sample_scores(dark, held_out, training, Means(), CPU, 0)
    assert found.keys() == {"sample_kid_coarse", "training_kid_coarse"}
    kid, people = (found[k]["mean"] for k in ("sample_kid_coarse", "training_kid_coarse"))
    assert kid is not None and people is not None and kid > 0.1 > abs(people)


def test_what_is_not_here_is_left_out() -> None:
    images = coarse(_images(5, 0))
    assert sample_scores(images, images, images, None, CPU, 0) == {}
    assert sample_scores(images, images, None, Means(), CPU, 0).keys() == {"sample_kid_coarse"}
