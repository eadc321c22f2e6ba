"""Law and prior are fitted once, by train; evaluate and export read them and write nothing."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

from data_prep.store import Store
from pipeline.__main__ import main
from pipeline.config import Config, load_config
from pipeline.errors import InputError
from pipeline.fits.fits import PRIOR, RECORD, RESIDUAL, Fits, fit, read_fits, write_fits
from pipeline.models.vae import VAE
from pipeline.package import format
from pipeline.training.checkpoint import find_checkpoint
from pipeline.training.loop import load_objective

Command = Callable[..., str]


@pytest.fixture
def command(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command on the run `tiny`; returns its one line of error where `code` is 2."""
    config = str(tiny_run.parents[1] / "tiny.yaml")

    def run(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        given = [words[0], "--config", config, *words[1:]] if words[0] == "train" else words
        assert main(given) == code
        said = capsys.readouterr()
        assert not code or len(said.err.splitlines()) == 1
        return said.err if code else said.out

    return run


def _model(run: Path) -> tuple[VAE, Config, str]:
    checkpoint = find_checkpoint(run / "checkpoints", "best")
    config = load_config(run / "config.yaml")
    return load_objective(checkpoint, config).vae, config, checkpoint.digest


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _alike(one: torch.nn.Module | None, other: torch.nn.Module | None) -> bool:
    assert one is not None and other is not None
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(v, right[k]) for k, v in left.items())


def test_fits_are_by_the_seed_and_read_as_they_were_written(tiny_run: Path, tmp_path: Path) -> None:
    """The model stays as it was; without being asked for there are none."""
    vae, config, digest = _model(tiny_run)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    store, kept = Store.open(tiny_run.parents[1] / "stores/tiny"), read_fits(tiny_run, digest, vae)
    assert (kept.split, kept.families) == ("validation", 1)
    fitted = fit(vae, config, store)
    write_fits(tmp_path / "again", digest, fitted)
    again = read_fits(tmp_path / "again", digest, vae)
    assert again.digest == kept.digest
    assert _alike(again.law, kept.law) and _alike(again.prior, kept.prior)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert not any(parameter.requires_grad for parameter in kept.law.parameters())  # type: ignore[union-attr]
    assert read_fits(tiny_run, "of another checkpoint", vae) == Fits()
    for section, key, value in (("likelihood", "residual", "none"), ("prior", "pieces", 0)):
        object.__setattr__(getattr(config, section), key, value)
    write_fits(tmp_path, "d", fit(vae, config, store))
    none = read_fits(tmp_path, "d", vae)
    assert none.law is None and none.prior is None and none.digest


@pytest.mark.parametrize("name", [RECORD, RESIDUAL, PRIOR])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_fits_that_are_gone_or_damaged_are_refused_and_train_makes_them_again(
    tiny_run: Path, command: Command, name: str, damage: str
) -> None:
    path = tiny_run / "fits" / name
    before = _bytes(tiny_run / "fits")
    content = bytearray(path.read_bytes())
    content[-3] ^= 255
    path.write_bytes(bytes(content[:-4] if damage == "cut" else content))
    if damage == "gone":
        path.unlink()
    vae, _, digest = _model(tiny_run)
    with pytest.raises(InputError, match="train"):
        read_fits(tiny_run, digest, vae)
    assert "nothing to do" in command("train")
    assert _bytes(tiny_run / "fits") == before


def test_a_run_that_was_stopped_before_its_fits_is_told_so_and_finished_by_train(
    tiny_run: Path, command: Command
) -> None:
    """Nothing refits them afterwards."""
    shutil.rmtree(tiny_run / "fits")
    for words in (("evaluate", "--run", "tiny"), ("export", "--run", "tiny")):
        assert "the same command again" in command(*words, code=2)
    command("train")
    before = _bytes(tiny_run)
    for word in ("prior.pieces=3", "likelihood.residual_floor=0.01", "likelihood.residual=none"):
        for words in (("evaluate", "--run", "tiny"), ("train",)):
            assert word.partition("=")[0] in command(*words, f"--{word}", code=2)
    assert _bytes(tiny_run) == before and RECORD in {path.name for path in map(Path, before)}


def test_a_package_holds_what_its_metrics_were_made_with(
    tiny_run: Path, command: Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format, "prove", lambda *_: {"decoder.pt2": 0.0})  # takes seconds
    vae, _, digest = _model(tiny_run)
    fits = read_fits(tiny_run, digest, vae)
    inputs = {"checkpoint": digest, "fits": fits.digest, "store": "s", "evaluation": {}}
    metrics = {key: {"mean": 1.0, "low": None, "high": None} for key in ("psnr", "sample_kid")}
    (tiny_run / "evaluation").mkdir()
    for name, content in (("metrics", metrics), ("inputs", inputs)):
        (tiny_run / f"evaluation/{name}.json").write_text(json.dumps(content))
    words = ("export", "--run", "tiny", "--register", "false")
    command(*words)
    packed = json.loads((work / "packages/tiny/metadata.json").read_text())
    assert packed["evaluation"]["metrics"] == metrics and packed["prior"]["pieces"] == 4
    command(*words, "--prior", "false")
    packed = json.loads((work / "packages/tiny/metadata.json").read_text())
    assert packed["evaluation"]["metrics"].keys() == {"psnr"} and packed["prior"] is None
    write_fits(tiny_run, digest, Fits(fits.law, None, fits.split, 9))
    assert "score it again" in command(*words, code=2)
    assert hashlib.sha256((tiny_run / "fits" / RECORD).read_bytes()).hexdigest() != fits.digest


HOLDER = """
from pipeline.files import locked_run
with locked_run("tiny"):
    print("held", flush=True)
    input()
"""


def test_a_run_that_another_process_trains_or_scores_is_left_alone(
    tiny_run: Path, command: Command
) -> None:
    """The process that holds it may be killed at any time: the next one finds it free."""
    before = _bytes(tiny_run)
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=PIPE, stdout=PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        for words in (("train",), ("train", "--restart", "true"), ("evaluate", "--run", "tiny")):
            assert "run tiny is being trained or scored" in command(*words, code=2)
        assert _bytes(tiny_run) == before
        other.kill()
    assert "nothing to do" in command("train")
