"""A wheel holds every package and installs the same commands that `make` calls."""

import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_prep", "pipeline", "sharp_vae")

pytestmark = pytest.mark.slow


def _run(*words: object, cwd: Path) -> str:
    done = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: nothing that lies about in the checkout gets in."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_every_module_is_in_the_wheel(wheel: Path) -> None:
    modules = {
        str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")
    }
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name for name in names if name.endswith(".py")} == modules
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "pipeline/losses/watson_dft.json" in names
    templates = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for kind in ("html", "css", "js")
        for path in (ROOT / name).rglob(f"*.{kind}")
    }
    assert templates and templates <= set(names)


def test_the_installed_commands_run(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    folder = home / ("Scripts" if sys.platform == "win32" else "bin")
    # The dependencies of the environment that runs the tests; its editable install stays out.
    (packages,) = home.glob("lib/python*/site-packages")
    hidden = ("__editable__", "sharp_vae_mri", "pip", "_distutils", "distutils-")
    shared = Path(site.getsitepackages()[0])
    for item in shared.iterdir():
        if not item.name.startswith(hidden) and not (packages / item.name).exists():
            (packages / item.name).symlink_to(item)
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    _run(folder / "python", *install, cwd=tmp_path)
    where = "import data_prep, pipeline.blur as p; print(data_prep.__file__, p.__file__)"
    found = _run(folder / "python", "-c", where, cwd=tmp_path).split()
    assert all(Path(path).is_relative_to(packages) for path in found)
    assert "--prepare.root" in _run(folder / "sharp-vae", "prepare", "--help", cwd=tmp_path)
    assert "evaluate" in _run(folder / "sharp-vae", "--help", cwd=tmp_path)
    assert "--training.epochs" in _run(folder / "sharp-vae", "train", "--help", cwd=tmp_path)
