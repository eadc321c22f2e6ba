"""A mistake is told in one line that names it, with exit code 2: never in a traceback."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from data_prep.__main__ import configuration
from data_prep.__main__ import main as prepare
from data_prep.common import wording
from data_prep.common.command_line import command_parser
from data_prep.common.errors import Failed, Stopped
from data_prep.common.wording import command, run_option
from data_prep.store import Store
from pipeline import cli
from pipeline.cli import COMMANDS, FOREIGN, main
from pipeline.config import Config, config_parser
from pipeline.training.checkpoint import TrainingState, mark_best, save_checkpoint

ROOT = Path(__file__).parents[1]
Fail = Callable[..., str]
# The default levels are those of images of 64² and more; the tiny store's are of 32².
TINY = "train --data.store tiny --tracking.enabled false --model.levels '[{side: 4, channels: 2}]'"


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Fail:
    """Runs a command that must fail, and returns what it says."""

    def run(*words: object, program: Callable[..., int] = main) -> str:
        code = program([str(word) for word in words])
        said = capsys.readouterr()
        (line,) = said.err.splitlines()
        assert code == 2 and line.startswith("error: ")
        assert not any(word in said.out + line for word in ("Traceback", "<class", "typing."))
        return line

    return run


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {epochz: 4}", "unknown key training.epochz: did you mean training.epochs?"),
        ("trainin: {epochs: 4}", "trainin"),
        ("data: {augmentation: {elastik: 0}}", "did you mean data.augmentation.elastic?"),
        ("training: {epochs: three}", "training.epochs: expected a whole number, not three"),
        ("training: {epochs: 1.5}", "training.epochs 1.5"),
        ("training: {rate_target: high}", "training.rate_target: expected a number or null high"),
        ("data: {flip: perhaps}", "data.flip: expected true or false, not perhaps"),
        ("likelihood: {form: winer}", "likelihood.form wiener positive_definite winer"),
        ("likelihood: {scale: best}", "likelihood.scale optimal number best"),
        ("likelihood: {kernel_size: 10}", "likelihood.kernel_size odd 10"),
        ("model: {latent: [16, 8, 8]}", "model.latent"),
        ("model: {levels: 16}", "model.levels 16"),
        ("model: {levels: []}", "model.levels"),
        ("model: {levels: [{side: 6, channels: 1}]}", "model.levels 6"),
        ("model: {levels: [{side: 4, channels: many}]}", "model.levels many"),
        ("model: {levels: [{side: 4, channels: 1, depth: 2}]}", "model.levels depth"),
        (
            "model: {levels: [{side: 8, channels: 1}, {side: 4, channels: 1}]}",
            "model.levels coarse to fine [8, 4]",
        ),
        ("prepare: {size: 48}", "prepare.size 48"),
        ("evaluation: {split: train}", "evaluation.split train"),
        ("training: {epochs: -1}", "training.epochs -1"),
        ("training: {ema_decay: 1}", "training.ema_decay must be >= 0, < 1, not 1"),
        ("training: {learning_rate: .nan}", "training.learning_rate nan"),
        ("training: 3", "mine.yaml training 3"),
        ("training:", "mine.yaml training"),
        ("data: {augmentation: off}", "mine.yaml data.augmentation"),
        ("training: {epochs: 3\nmodel: {", "mine.yaml line 2"),
        ("just words", "mine.yaml"),
        ("", "mine.yaml"),
        ("a: \x00", "mine.yaml"),
    ],
)
def test_a_wrong_configuration(fail: Fail, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    said = fail("train", "--config", tmp_path / "mine.yaml")
    assert all(word in said for word in words.split()), said
    if "mine.yaml" in words and "{" not in words and ":" not in text:
        said = fail("--config", tmp_path / "mine.yaml", program=prepare)
        assert "mine.yaml" in said


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("trian", "trian train evaluate"),
        ("train", "--config"),
        ("evaluate", "--run"),
        ("train CONFIG --training.epochz=3", "key --training.epochz: did you mean"),
        ("train CONFIG --training.widht=3", "did you mean --model.width?"),
        ("train CONFIG --compare.seed=3", "did you mean --compare.seeds?"),
        ("train CONFIG --epochs=3", "unknown key --epochs: did you mean --training.epochs?"),
        ("train CONFIG --training.epochs=x", "training.epochs a whole number"),
        ("train CONFIG --training.epochs", "training.epochs"),
        ("train CONFIG --colour=red", "unknown key --colour"),
        ("train CONFIG more", "unexpected more"),
        ("train CONFIG training.epochs", "did you mean --training.epochs?"),
        ("train CONFIG --run=a/b", "--run a/b"),
        ("train CONFIG --run=..", "--run"),
        ("train CONFIG --restart=perhaps", "restart true or false"),
        ("train --config=nowhere.yaml", "nowhere.yaml"),
        ("train --config=.", "config"),
        ("train CONFIG", "stores/mine make prepare"),
        ("train --data.store other", "stores/other"),
        ("evaluate --run nobody", "runs/nobody"),
        ("evaluate --run nobody --restart", "restart"),
        ("verify", "--store"),
        ("verify --store x --deep", "unknown key --deep"),
        ("verify --store x", "stores/x"),
        ("prepare --config nowhere.yaml", "nowhere.yaml"),
        ("prepare CONFIG --prepare.sizze 3", "did you mean --prepare.size?"),
        ("ui --port 0", "port"),
        (f"{TINY} --likelihood.term bluur", "likelihood.term gaussian laplace bluur"),
        (f"{TINY} --training.device gpu", "training.device gpu"),
        (f"{TINY} --model.levels '[{{side: 32, channels: 4}}]'", "model.levels 32 16"),
        (f"{TINY} --likelihood.kernel_size 33", "likelihood.kernel_size 33"),
    ],
)
def test_a_wrong_command_line(
    fail: Fail,
    tmp_path: Path,
    work: Path,
    store_writer: Callable[..., Store],
    argv: str,
    words: str,
) -> None:
    if "tiny" in argv:
        store_writer(work)
    (tmp_path / "mine.yaml").write_text("training: {epochs: 1}")
    said = fail(*shlex.split(argv.replace("CONFIG", f"--config {tmp_path}/mine.yaml")))
    assert all(word in said for word in words.split()), said
    assert not (work / "runs/tiny/config.yaml").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("anomaly --package=./p --image x.nii.gz", "--image: x.nii.gz is not there"),
        ("reconstruct --package p --kspace FILE --like x.nii.gz", "x.nii.gz is not there"),
        ("reconstruct --package none --store none", "no decoder package at"),
        ("reconstruct --package models:/a/1 --store none", "no prepared store at"),
        ("lesions --package models:/a/1 --store s --baseline none", "no decoder package at"),
        ("evaluate --reconstructions none.pt2", "none.pt2 is not there"),
        ("evaluate --reconstructions FILE --store none", "no prepared store at"),
        ("evaluate --run none", "no run at"),
        ("train --training.epochz=3", "epochz"),
        ("train --data.store none", "no prepared store at"),
        ("ui", "mlflow.db"),
    ],
)
def test_a_wrong_path_waits_for_no_torch(argv: str, words: str) -> None:
    given = argv.replace("FILE", __file__).split()
    program = f"import sys, pipeline.cli as p; p.main({given}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n" or "data.store" in argv
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def _raising(error: BaseException) -> Callable[..., int]:
    def command(words: object) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("argv", "error", "code", "words"),
    [
        ("train", KeyboardInterrupt(), 130, "continues from the last checkpoint"),
        ("compare", KeyboardInterrupt(), 130, "what is trained or scored is kept"),
        ("evaluate", KeyboardInterrupt(), 130, "nothing was saved"),
        ("evaluate", KeyboardInterrupt("half is kept"), 130, "half is kept"),
        ("export", PermissionError(13, "no", "/their/folder"), 2, "/their/folder"),
        ("export", FileExistsError(17, "no", "/their/folder"), 2, "/their/folder"),
        ("train", OSError(28, "No space left on device"), 2, "make room"),
        ("train", Failed("came to nothing"), 3, "came to nothing"),
        ("train", Stopped(15), 143, "SIGTERM state saved"),
        ("train", ModuleNotFoundError(name="mlflow.x"), 2, "mlflow --tracking.enabled"),
        ("train", ModuleNotFoundError(name="PIL"), 2, "pip install pillow"),
    ],
)
def test_the_ends_of_a_command(
    argv: str,
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "_command", _raising(error))
    assert main([argv]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words.split()), line


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), ModuleNotFoundError(name="")])
def test_a_fault_of_the_program_is_no_mistake_of_its_user(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_command", _raising(error))
    with pytest.raises(type(error)):
        main(["train"])


@pytest.mark.parametrize(
    ("script", "makefile", "expected"),
    [
        ("pipeline/__main__.py", True, ["make train", "make export RUN=a", "make prepare", "RUN="]),
        ("bin/sharp-vae", True, None),
        ("Scripts/sharp-vae.exe", False, None),
        ("ipykernel_launcher.py", False, None),
    ],
)
def test_messages_name_the_command_in_use(
    script: str, makefile: bool, expected: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not makefile:
        monkeypatch.setattr(wording, "MAKEFILE", Path("no/Makefile"))
    monkeypatch.setattr(sys, "argv", [script])
    installed = ["sharp-vae train", "sharp-vae export --run a", "sharp-vae prepare", "--run "]
    names = [command("train"), command("export", run="a"), command("prepare"), run_option()]
    assert names == (expected or installed)


def test_help_names_the_program_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, ours = tmp_path, str(tmp_path / ".venv")  # a checkout with the environment of its make
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(wording, "MAKEFILE", tmp_path / "Makefile")
    for script, folder, prefix, name in (
        ("bin/sharp-vae", root, ours, "sharp-vae"),
        ("x", root, "/usr", "python -m pipeline"),
        ("x", root.parent, ours, "python -m pipeline"),
        ("x", root, ours, ".venv/bin/python -m pipeline"),
    ):
        monkeypatch.setattr(sys, "argv", [script])
        monkeypatch.setattr(sys, "prefix", prefix)
        monkeypatch.chdir(folder)
        main([])
        assert capsys.readouterr().out.startswith(f"usage: {name} COMMAND")


def test_a_missing_run_is_told_with_what_makes_it_and_those_that_are_there(
    fail: Fail, work: Path
) -> None:
    for run in ("first", "second"):
        (work / "runs" / run).mkdir(parents=True)
    for which in ("evaluate", "export"):
        assert "(make train CONFIG=configs/hcp64.yaml)" in fail(which, "--run", "hcp64")
        said = fail(which, "--run", "nobody")
        assert "(make train CONFIG=…), or choose one of first, second" in said
    said = fail("evaluate", "--config", "configs/hcp64.yaml", "--run", "other")
    assert "(make train CONFIG=configs/hcp64.yaml RUN=other)" in said
    assert "(make train), or" in fail("evaluate", "--run", "demo")


def _damaged_checkpoint(run: Path, manifest: bytes) -> None:
    (run / "checkpoints/step-00000003").mkdir(parents=True)
    (run / "checkpoints/step-00000003/manifest.json").write_bytes(manifest)


@pytest.mark.parametrize(
    ("argv", "manifest", "text", "words"),
    [
        ("evaluate --run tiny", None, "", "runs/tiny/checkpoints train"),
        ("evaluate --run tiny", b"no checkpoint", "", "runs/tiny/checkpoints train"),
        ("train --data.store tiny", b'{"schema_version": 0}', "", "runs/tiny --restart true"),
        ("evaluate --run tiny", None, "training: 3", "config.yaml"),
    ],
)
def test_a_damaged_run(
    fail: Fail,
    work: Path,
    store_writer: Callable[..., Store],
    argv: str,
    manifest: bytes | None,
    text: str,
    words: str,
) -> None:
    store_writer(work)
    run = work / "runs/tiny"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(text or yaml.safe_dump({"data": {"store": "tiny"}}))
    if manifest is not None:
        _damaged_checkpoint(run, manifest)
    said = fail(*argv.split())
    assert all(word in said for word in words.split()), said


def test_a_damaged_best_checkpoint_is_not_replaced_by_another(fail: Fail, work: Path) -> None:
    run = work / "runs/mine"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"store": "tiny"}}))
    save_checkpoint(run / "checkpoints", {}, TrainingState(step=9))
    _damaged_checkpoint(run, b"damaged")
    mark_best(run / "checkpoints", 3)
    assert "step-00000003" in fail("evaluate", "--run", "mine")


def test_a_store_of_another_schema_version(
    fail: Fail, work: Path, store_writer: Callable[..., Store]
) -> None:
    manifest = store_writer(work).path / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "schema_version": 99}))
    said = fail("train", "--data.store", "tiny")
    assert "manifest.json" in said and "99" in said


def test_mlflow_that_cannot_be_used(
    fail: Fail, work: Path, store_writer: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_writer(work)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    said = fail(*shlex.split(TINY.replace("false", "true")))
    assert "nonsense://nowhere" in said and "--tracking.enabled false" in said


def test_in_a_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "--training.epochs", "many"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: training.epochs: expected a whole number, not many\n"


SECTIONS = {
    "prepare": "prepare",
    "train": "data model prior likelihood training tracking",
    "evaluate": "evaluation tracking",
    "compare": "data model prior likelihood training evaluation compare tracking",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_a_usage_line_a_sentence_the_options_and_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    usage, about, *_ = said.split("\n\n")
    assert len(usage.splitlines()) == 1 and 1 <= len(about.splitlines()) <= 4
    example = said.strip().rpartition("\n\n")[2]
    assert example.startswith("example: ") and COMMANDS[name].example in " ".join(example.split())
    options = said.partition("exit.")[2]
    assert re.findall(r"^  --", options, re.MULTILINE)
    assert not re.findall(r"^  --\w+(?: \S+)?\s+\((?:required, )?type", options, re.MULTILINE)
    shown = set(re.findall(r"^  --(\w+)\.", said, re.MULTILINE))
    assert shown == set(SECTIONS.get(name, "").split())


@pytest.mark.parametrize("row", [*COMMANDS.values(), FOREIGN], ids=lambda row: row.example)
def test_the_example_of_help_is_understood(
    row: cli.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys and values; files that it names need not be here."""
    monkeypatch.chdir(ROOT)  # its configurations are those of the checkout
    parser = config_parser("", "", "")
    if row.module:
        parser = command_parser("", "", "")
        parser.add_class_arguments(row.options or import_module(row.module).Options)
    elif not row.about:  # of data_prep: test_prepare_stage
        return
    arguments = parser.read(shlex.split(row.example))
    if not row.module:
        parser.made(Config, arguments)


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0 == main(["-h"])
    assert "evaluate" in capsys.readouterr().out


def test_a_bare_key_that_is_true_or_false_is_true() -> None:
    parser = config_parser("", "", "")
    given = parser.read(["--compare.quick", "--data.flip=false", "--restart", "--prepare.n4"])
    assert given.compare.quick and given.restart and given.prepare.n4 and not given.data.flip
    # The same words go to `make prepare train`: the other package's switches are passed over.
    assert configuration(["--compare.quick", "--prepare.name", "x", "--data.flip"]).name == "x"
