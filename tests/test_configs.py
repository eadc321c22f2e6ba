"""Every configuration file can be read, and those of image sets can be trained."""

import io
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import OTHER_SECTIONS, configuration
from data_prep.__main__ import main as prepare
from data_prep.common.tracking import flat_keys
from pipeline.__main__ import main as pipeline
from pipeline.config import Config, EvaluationConfig, load_config, work_keys
from pipeline.package.export import MACHINES_OWN
from pipeline.training.train import INDIFFERENT

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


# Where each file differs from the defaults. A file may be rewritten; what it means is kept here.
GOLDEN = Path(__file__).with_name("golden_configs.json")
# Files that share the store of another.
STORES = {
    "compare_hcp64": "hcp64", "paper64": "hcp64", "paper_cifar10": "cifar10",
    "paper_celeba64": "celeba64", "paper_celeba256": "celeba256",
}  # fmt: skip


def as_plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_means_what_it_did(path: Path) -> None:
    defaults = dict(flat_keys(asdict(Config())))
    found = dict(flat_keys(asdict(load_config(path))))
    changed = {key: value for key, value in found.items() if value != defaults[key]}
    assert as_plain(changed) == json.loads(GOLDEN.read_text())[path.stem]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_is_read_by_both_programs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = configuration(["--config", str(path)])
    assert found.name == STORES.get(path.stem, path.stem)
    assert pipeline(["train", "--config", str(path), "--print_config"]) == 0
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


def write_layers(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_file_lies_over_the_one_it_extends(tmp_path: Path) -> None:
    """Sections are merged key by key, lists are replaced, and names are relative to their file."""
    (tmp_path / "base").mkdir()
    write_layers(
        tmp_path / "base",
        ground="training: {epochs: 5, seed: 3}\ncompare: {seeds: [1, 2]}\n",
        middle="extends: ground.yaml\ntraining: {learning_rate: 4e-3}\n",
    )
    write_layers(
        tmp_path,
        top="extends: base/middle.yaml\n"
        "prepare: {spacing_mm: 1e0, split: {salt: '15'}}\n"
        "training: {epochs: 7}\ncompare: {seeds: [9]}\n",
    )
    config = load_config(tmp_path / "top.yaml", "--training.seed=4")
    training = config.training
    assert (training.epochs, training.learning_rate, training.seed) == (7, 4e-3, 4)
    assert config.compare.seeds == (9,)
    assert (config.prepare.spacing_mm, config.prepare.split.salt) == (1.0, "15")
    prepared = configuration(["--config", str(tmp_path / "top.yaml")])
    assert (prepared.name, prepared.split.salt) == ("top", "15")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: nowhere.yaml", ["nowhere.yaml", "top.yaml"]),
        ("extends: top.yaml", ["circle", "top.yaml"]),
        ("extends: round.yaml", ["circle", "top.yaml", "round.yaml"]),
        ("extends: 3", ["top.yaml", "extends", "3"]),
        ("extends: listed.yaml", ["listed.yaml", "keys"]),
        ("extends: broken.yaml", ["broken.yaml", "line 2"]),
        (
            "prepare:\n  size: 64\ntraining:\n  seed: 1\nprepare:\n  n4: true",
            ["line 5", "prepare", "twice"],
        ),
        ("training: {seed: 1, seed: 2}", ["top.yaml", "line 1", "seed", "twice"]),
        ("training: {epochs: 010}", ["line 1", "010"]),
        ("training: {epochs: 1:30}", ["line 1", "1:30"]),
    ],
    ids=str,
)
def test_a_layer_that_cannot_be_read_is_one_line_and_exit_code_2(
    text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_layers(tmp_path, top=text, round="extends: top.yaml", listed="- 1", broken="a:\n}")
    path = str(tmp_path / "top.yaml")
    for program in (prepare, lambda argv: pipeline(["train", *argv])):
        assert program(["--config", path]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and all(word in told for word in words)


def test_keys_that_decide_nothing_of_a_run_are_marked_beside_their_fields() -> None:
    """Changing one of these must never ask for another training, and no other key may join them."""
    assert {
        "data.store", "data.workers", "data.on_device", "training.threads", "training.device",
        "training.compile", "training.checkpoint_every", "training.checkpoint_minutes",
        "training.cuda_graph", "training.keep_checkpoints", "training.max_skipped",
        "likelihood.vgg_weights",
    } == INDIFFERENT  # fmt: skip
    assert work_keys(EvaluationConfig) == {"device", "threads", "other_people"}
    assert {
        "device", "threads", "other_people", "batch_size", "store", "download",
        "lpips_alex_weights", "lpips_vgg_weights", "inception_weights",
    } == MACHINES_OWN  # fmt: skip
