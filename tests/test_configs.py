"""Every configuration file can be read, and those of image sets can be trained."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import OTHER_SECTIONS, configuration
from data_prep.__main__ import main as prepare
from pipeline.__main__ import main as pipeline
from pipeline.config import Config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def write_cifar10(root: Path) -> None:
    for seed, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        data = np.random.default_rng(seed).integers(0, 256, (4, 3072), np.uint8)
        batch = pickle.dumps({b"data": data, b"labels": [0, 1, 2, 3]}, protocol=2)
        (root / name).write_bytes(batch)


def write_celeba(root: Path) -> None:
    (root / "img_align_celeba").mkdir()
    lines = []
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 256, (9, 7, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).resize((178, 218)).save(stream, "JPEG")
        (root / f"img_align_celeba/{number:06d}.jpg").write_bytes(stream.getvalue())
        lines.append(f"{number:06d}.jpg {max(0, number - 5)}\n")
    (root / "list_eval_partition.txt").write_text("".join(lines))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_is_read_by_both_programs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = configuration(["--config", str(path)])
    assert found is not None and found.name == path.stem
    with pytest.raises(SystemExit) as ended:
        pipeline(["train", "--config", str(path), "--print_config"])
    assert ended.value.code == 0
    assert f"source: {found.source}" in capsys.readouterr().out


def test_both_programs_know_the_same_sections() -> None:
    assert {"prepare", *OTHER_SECTIONS} == set(Config.__dataclass_fields__)


@pytest.mark.parametrize(
    "name",
    ["cifar10", "celeba64", pytest.param("celeba256", marks=pytest.mark.slow)],
)
def test_an_image_set_takes_two_steps(
    name: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    write_cifar10(root) if name == "cifar10" else write_celeba(root)
    shared = ["--config", str(ROOT / f"configs/{name}.yaml"), "--prepare.root", str(root)]
    if name == "cifar10":
        shared += ["--prepare.validation_images", "4"]
    assert prepare([*shared, "--prepare.workers", "1", "--prepare.track", "false"]) == 0
    settings = {
        "training.epochs": 2, "training.batch_size": 2, "training.device": "cpu",
        "model.width": 8, "model.residual_blocks": 1, "tracking.enabled": "false",
        "likelihood.warmup_epochs": 1, "likelihood.residual_steps": 4, "data.workers": 0,
        "prior.images": 40,
    }  # fmt: skip
    more = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    assert pipeline(["train", *shared, *more]) == 0
    assert (work / f"runs/{name}/config.yaml").is_file()
