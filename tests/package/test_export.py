"""The export of a run: its package, its version in MLflow, and every refusal."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data_prep.common.tracking import track_run
from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.config import load_config
from pipeline.errors import InputError
from pipeline.fits.fits import fits_digest, read_fits, write_fits
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import ModelConfig
from pipeline.package import describe, format, load
from pipeline.package.standalone import largest_error
from pipeline.tracking import served_decoder
from pipeline.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from pipeline.training.loop import load_objective

LATENTS = 96
NAME = "sharp-vae-mri-decoder"
WORDS = ("--run", "tiny", "--register", "false")

Command = Callable[..., str]


def score(run: Path, **metrics: float) -> None:
    """An evaluation of the best checkpoint, as `evaluate` leaves it."""
    digest = find_checkpoint(run / "checkpoints", "best").digest
    settings = {"split": "test", "store": "/here", "batch_size": 4, "download": True}
    inputs = {"checkpoint": digest, "fits": fits_digest(run, digest), "evaluation": settings}
    intervals = {key: {"mean": mean, "low": None, "high": None} for key, mean in metrics.items()}
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation/metrics.json").write_text(json.dumps(intervals))
    (run / "evaluation/inputs.json").write_text(json.dumps(inputs))


def another(run: Path, name: str, *, cold: bool = False, tracking: bool = False) -> Path:
    """A copy of a run under another name; cold: its term has no scale yet."""
    checkpoint = find_checkpoint(run / "checkpoints", "best")
    vae = load_objective(checkpoint, load_config(run / "config.yaml")).vae
    fits = read_fits(run, checkpoint.digest, vae)
    if cold:
        checkpoint.weights["averaged.term.scale.running"].fill_(torch.nan)
    checkpoint.state.config["tracking"]["enabled"] = tracking
    copy = run.with_name(name)
    path = save_checkpoint(copy / "checkpoints", checkpoint.weights, checkpoint.state)
    write_fits(copy, load_checkpoint(path).digest, fits)
    return copy


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Exports; the graphs, whose proof takes seconds and has tests of its own, unproven."""
    monkeypatch.setattr(format, "prove", lambda *_: {"decoder.pt2": 3e-7})

    def run(*words: object, code: int = 0) -> str:
        assert main(["export", *map(str, words)]) == code
        told = capsys.readouterr()
        if code:
            assert len(told.err.splitlines()) == 1 and told.err.startswith("error: ")
        return told.err if code else told.out

    return run


def test_the_package_is_the_run(tiny_run: Path, export: Command, work: Path) -> None:
    score(tiny_run, lpips_alex=0.2, sample_lpips_alex=0.5)
    told = export("--run", "tiny")  # which has no tracking
    assert str(work / "packages/tiny") in told and "at most 3e-07" in told and "1e-05" in told
    assert "MLflow" not in told and not (work / "mlflow.db").exists()
    assert "nothing to do" in export(*WORDS)
    package = load(work / "packages/tiny")
    checkpoint = find_checkpoint(tiny_run / "checkpoints", "best")
    weights = {f"averaged.vae.{name}": value for name, value in package.vae.state_dict().items()}
    assert weights.keys() == {n for n in checkpoint.weights if n.startswith("averaged.vae.")}
    for name, value in weights.items():
        assert torch.equal(value, checkpoint.weights[name])
    facts = package.metadata
    assert facts["run"]["name"] == "tiny"
    assert facts["run"]["checkpoint"]["step"] == checkpoint.state.step
    assert facts["store"]["name"] == "tiny" and facts["store"]["simulated"]
    assert facts["evaluation"]["metrics"]["lpips_alex"]["mean"] == 0.2
    assert facts["evaluation"]["inputs"]["evaluation"] == {"split": "test"}, "no place is named"
    assert (package.spacing_mm, package.plane) == (3.2, "axial")
    assert package.orientation == "rows A>P, columns L>R"
    assert package.prepare_keys["upper_percentile"] == 99.5 and "root" not in package.prepare_keys
    assert package.trained_on(subject="p00") and package.trained_on(family="p01")
    assert not package.trained_on(subject="p04", family="p04")
    assert package.fitted_on(subject="p03") and not package.fitted_on(family="p00", subject="p04")
    assert '"p00"' not in json.dumps(facts)
    scale = 0.5 * checkpoint.weights["averaged.term.scale.running"].item()
    assert package.scale == pytest.approx(np.exp(scale))

    assert package.prior is not None and package.prior.sizes == {"pieces": 4, "rank": 2}
    latents = package.prior.sample(4, torch.Generator().manual_seed(0))
    drawn = package.sample(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, package.decode(latents))
    assert (work / "packages/tiny/prior.pt2").exists()
    export(*WORDS, "--prior", "false")
    package = load(work / "packages/tiny")
    assert package.prior is None and package.metadata["prior"] is None
    assert not list((work / "packages/tiny").glob("prior*"))
    assert set(package.metadata["evaluation"]["metrics"]) == {"lpips_alex"}
    assert package.sample(4, torch.Generator().manual_seed(0)).shape == drawn.shape

    inputs = tiny_run / "evaluation/inputs.json"
    inputs.write_text(inputs.read_text().replace('"checkpoint": "', '"checkpoint": "of another '))
    assert "nothing to do" not in export(*WORDS), "another evaluation makes another package"
    assert load(work / "packages/tiny").metadata["evaluation"] is None


def test_monai_runs_and_mlflow_serves_the_package(
    tiny_run: Path, export: Command, work: Path
) -> None:
    """MLflow without a database, and unpickled; the slow test goes through the registry."""
    import mlflow.pyfunc
    from monai.bundle import run  # takes seconds

    export(*WORDS)
    config = Path(__file__).parents[2] / "docs/examples/monai_bundle.yaml"
    package, output = str(work / "packages/tiny"), work / "bundle"
    run(run_id="run", config_file=str(config), package=package, output=str(output))
    files = sorted(output.rglob("*.nii.gz"))
    assert len(files) == 4
    values = nib.load(files[0]).get_fdata()
    assert np.squeeze(values).shape == (32, 32) and 0 <= values.min() <= values.max() <= 1

    mlflow.pyfunc.save_model(
        str(work / "model"),
        python_model=served_decoder.__file__,
        artifacts={"package": package},
        pip_requirements=["torch"],
    )
    latents = torch.randn(3, LATENTS)
    served = mlflow.pyfunc.load_model(str(work / "model")).predict(latents.numpy())
    expected = load(package).decode(latents).numpy()
    assert served.dtype == np.float32 and served.shape == expected.shape
    assert largest_error(served, expected) < 1e-5  # a graph may add in another order
    assert not [*work.glob("model/**/*.pkl")]


# The keys that MONAI's schema of 2024-07-25 asks for, and those of each tensor.
ASKED = {
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "task",
    "required_packages_version", "description", "authors", "copyright", "network_data_format",
}  # fmt: skip
OF_TENSOR = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"}


def test_monai_s_schema_finds_what_it_asks_for() -> None:
    made = {"authors": "me", "copyright": "CC0", "spacing_mm": float("nan")}
    metadata = describe((1, 32, 32), ModelConfig(), LikelihoodConfig(), **made)
    assert metadata.keys() >= ASKED and metadata["authors"] == "me"
    assert metadata["spacing_mm"] is None, "JSON has no NaN"
    for tensors in metadata["network_data_format"].values():
        assert all(tensor.keys() >= OF_TENSOR for tensor in tensors.values())


@pytest.mark.slow
def test_versions_in_mlflow(tiny_run: Path, export: Command, work: Path) -> None:
    """A story in one test, since a fresh database takes seconds."""
    from mlflow import MlflowClient

    another(tiny_run, "plain", tracking=True)
    assert f"{NAME}, version 1" in export("--run", "plain")
    score(another(tiny_run, "good", tracking=True), lpips_alex=0.2)
    assert f"{NAME}, version 2" in export("--run", "good")
    assert "version 2 (registered already)" in export("--run", "good")

    client = MlflowClient(f"sqlite:///{work}/mlflow.db")
    versions = client.search_model_versions(f"name='{NAME}'")
    assert len(versions) == 2 and not any(version.aliases for version in versions)
    client.set_registered_model_alias(NAME, "mine", "1")
    named = load(f"models:/{NAME}@mine")
    assert named.metadata["run"]["name"] == "plain"
    assert load(f"models:/{NAME}/2").metadata["run"]["name"] == "good"
    tracked = client.get_model_version(NAME, "2").run_id
    assert load(f"runs:/{tracked}/decoder").metadata["run"]["name"] == "good"

    served = subprocess.run(
        [sys.executable, "-c", SERVED, f"sqlite:///{work}/mlflow.db", f"models:/{NAME}@mine"],
        input=json.dumps(torch.ones(2, LATENTS).tolist()), capture_output=True, text=True,
        cwd=work,
    )  # fmt: skip
    assert served.returncode == 0, served.stderr
    images = torch.tensor(json.loads(served.stdout.splitlines()[-1]))
    assert largest_error(images.numpy(), named.decode(torch.ones(2, LATENTS)).numpy()) < 1e-5

    unknown = (f"models:/{NAME}/9", f"models:/{NAME}@nobody", "models:/nobody@mine",
               "models:/nobody", f"runs:/{tracked}/encoder", "runs:/nobody/decoder")  # fmt: skip
    for address in unknown:
        with pytest.raises(InputError, match=address):
            load(address)


# Without the project; signature and example are those of the model.
SERVED = """
import sys, json, logging
class Blocker:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("pipeline", "data_prep"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import mlflow, numpy as np, torch
torch.set_num_threads(1)
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
assert [t.shape for t in model.metadata.signature.inputs.inputs] == [(-1, 96)]
assert [t.shape for t in model.metadata.signature.outputs.inputs] == [(-1, 1, 32, 32)]
assert model.input_example.shape == (1, 96)
print(json.dumps(model.predict(np.array(json.load(sys.stdin), dtype=np.float32)).tolist()))
"""


def test_a_database_that_is_none_is_told_in_a_line(work: Path) -> None:
    with pytest.raises(InputError, match="no MLflow database"):
        load(f"models:/{NAME}@mine")
    assert not (work / "mlflow.db").exists()
    work.mkdir()
    (work / "mlflow.db").write_bytes(b"no database " * 1000)
    with pytest.raises(InputError, match="can't be fetched from MLflow"):
        load(f"models:/{NAME}@mine")
    with pytest.raises(InputError, match="MLflow can't be used"):
        track_run("x", work, "x", instead="").__enter__()


def test_what_can_not_be_exported_is_refused(
    tiny_run: Path, export: Command, work: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, store_writer: Callable[..., Store],
) -> None:  # fmt: skip
    (work / "runs/empty").mkdir(parents=True)
    another(tiny_run, "cold", cold=True)
    another(tiny_run, "tracked", tracking=True)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/there/file/mlflow.db")
    for words, told in (
        ((), "--run RUN"),
        (("--run", "nobody"), "no run at"),
        (("--run", "../x"), "plain name"),
        (("--run", "empty", "--onyx", "true"), "--onyx"),
        (("--run", "empty"), "no checkpoint"),
        (("--run", "cold"), "warmup_epochs"),
        (("--run", "tiny", "--output", tmp_path / "there"), "is no decoder package"),
        (("--run", "tracked"), "--register false"),
    ):
        assert told in export(*words, code=2)
    assert load(work / "packages/tracked")  # which is there all the same
    store_writer(work, seed=9)
    assert "not the one that run tiny was trained on" in export("--run", "tiny", code=2)
