"""A small decoder that is trained here, and commands that find it under the name `tiny`."""

from collections.abc import Callable

import pytest
import torch

from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.data.slices import SliceDataset
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import Level, ModelConfig
from pipeline.package import DecoderPackage, describe
from pipeline.package.format import hashed_subjects

Fail = Callable[..., str]


@pytest.fixture(scope="session")
def trained(tiny_store: Store) -> DecoderPackage:
    """A decoder of the tiny store's training people, after seconds of training."""
    torch.manual_seed(0)
    people = tiny_store.subjects("train")
    keys = ("subject", "family", "source_sha256")
    metadata = describe(
        (1, 32, 32),
        ModelConfig(levels=[Level(4, 4), Level(8, 4)], width=8, max_width=16),
        LikelihoodConfig(term="gaussian", scale=0.05),
        spacing_mm=tiny_store.spacing_mm,
        orientation=tiny_store.orientation,
        plane=tiny_store.plane,
        prepare=tiny_store.manifest["configuration"],
        store={"name": tiny_store.name, "simulated": True},
        trained_on=hashed_subjects({key: getattr(e, key) for key in keys} for e in people),
    )
    package = DecoderPackage(metadata | {"digest": "0"}).requires_grad_(True)
    data = SliceDataset(tiny_store, people)
    images = data.__getitems__(range(len(data)))
    optimiser = torch.optim.Adam(package.parameters(), lr=5e-3)
    for _ in range(150):
        inferred = package.vae.infer(images, package.vae.prior_latents(len(images)))
        error = (inferred.reconstruction - images).square().sum() / (2 * 0.05**2)
        optimiser.zero_grad()
        (error + inferred.posterior.rate().sum()).backward()
        optimiser.step()
    return package.requires_grad_(False)


@pytest.fixture
def tiny(trained: DecoderPackage, monkeypatch: pytest.MonkeyPatch) -> DecoderPackage:
    """`--package tiny` is that decoder."""
    monkeypatch.setattr("pipeline.package.format.load", lambda *_: trained)
    monkeypatch.setattr("pipeline.analysis.jobs.existing_package", lambda _: None)
    return trained


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Fail:
    """Runs a command that must fail in one line with exit code 2, and returns the line."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return run
