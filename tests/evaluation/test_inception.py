"""FID's network: nothing but the one file of weights is ever used under that name."""

import io
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pipeline import backbones
from pipeline.backbones import INCEPTION_FILES, WeightsNotFound, inception_weights
from pipeline.config import EvaluationConfig
from pipeline.errors import InputError
from pipeline.evaluation import networks
from pipeline.metrics.inception import InceptionFeatures


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache; any download is an error of the test."""

    def no_network(*_: object, **__: object) -> Any:
        raise OSError("no network in this test")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the right layout: they prove that the path works, and are no FID's."""
    empty = io.BytesIO()
    shapes = _Bare("inception-v3-compat", ["2048"], empty).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {
        key: value
        if value.ndim == 0 or key.endswith("running_var")
        else 0.05 * torch.randn(value.shape, generator=generator)
        for key, value in shapes.items()
    }
    path = tmp_path_factory.mktemp("inception") / INCEPTION_FILES[0]
    torch.save(state, path)
    return path


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


def _accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take any file for the right one."""
    monkeypatch.setattr(backbones, "INCEPTION_SHA256", "")


def test_the_right_layout_loads_and_gives_2048_features(drawn: Path) -> None:
    before = torch.get_rng_state()
    network = InceptionFeatures(drawn)
    assert torch.equal(before, torch.get_rng_state())
    images = torch.rand(3, 1, 32, 32)
    features = network.features(images)
    assert features.shape == (3, 2048) == (3, network.size) and features.isfinite().all()
    torch.testing.assert_close(network.features(images.expand(-1, 3, -1, -1)), features)
    with pytest.raises(ValueError, match="channels"):
        network.features(torch.zeros(1, 2, 32, 32))
    with pytest.raises(ValueError, match=r"\[0,1\]"):
        network.features(torch.full((1, 1, 32, 32), 255.0))


def test_another_file_of_the_right_name_is_refused_wherever_it_lies(
    drawn: Path, cache: Path
) -> None:
    for weights in (str(drawn), str(drawn.parent)):
        with pytest.raises(WeightsNotFound, match="SHA-256"):
            inception_weights(weights)
    (cache / INCEPTION_FILES[1]).write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsNotFound, match="SHA-256"):
        inception_weights()


def test_path_folder_and_hub_cache_are_looked_in(
    drawn: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _accept(monkeypatch)
    assert inception_weights(str(drawn)) == inception_weights(str(drawn.parent)) == drawn
    with pytest.raises(WeightsNotFound, match="holds no"):
        inception_weights()
    (cache / INCEPTION_FILES[1]).write_bytes(b"weights")
    assert inception_weights() == cache / INCEPTION_FILES[1]


@pytest.mark.parametrize("allow_download", [False, True])
def test_without_weights_all_three_ways_are_named(allow_download: bool) -> None:
    with pytest.raises(WeightsNotFound) as caught:
        inception_weights(allow_download=allow_download)
    text = str(caught.value)
    for words in ("configured path", "hub cache", "download", INCEPTION_FILES[0]):
        assert words in text
    assert ("no network in this test" in text) == allow_download


class _Malicious:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_a_file_that_runs_code_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"fc.weight": _Malicious()}, tmp_path / "bad.pth")
        with pytest.raises(WeightsNotFound, match="can't be read"):
            InceptionFeatures(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_left_out_with_the_reason_where_it_was_not_asked_for_else_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, drawn: Path
) -> None:
    def nowhere(network: str, *_: object) -> Any:
        raise WeightsNotFound(f"no weights for {network}")

    monkeypatch.setattr(networks, "PerceptualDistance", nowhere)
    with caplog.at_level(logging.WARNING):
        found = networks.load_networks(EvaluationConfig())
    assert found.image_sets() == [] and found.absent.keys() == {
        "lpips_alex", "lpips_vgg", "kid_vgg16", "fd_vgg16", "sample_kid_vgg16", "sample_fd_vgg16",
        "fid", "sample_fid",
    }  # fmt: skip
    assert "hub cache" in found.absent["fid"] and "fid" in caplog.text
    with pytest.raises(InputError, match=r"evaluation\.inception_weights.*nowhere\.pth"):
        networks.load_networks(EvaluationConfig(inception_weights="nowhere.pth"))
    _accept(monkeypatch)
    found = networks.load_networks(EvaluationConfig(inception_weights=str(drawn)))
    assert len(found.image_sets()) == 1 and "fid" not in found.absent
