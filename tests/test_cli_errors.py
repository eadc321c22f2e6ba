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

from data_prep.common import invocation
from data_prep.common.invocation import command, run_option
from data_prep.store import Store
from pipeline.__main__ import COMMANDS, EXAMPLES, FOREIGN, HELP, MODULES, _parsed, main
from pipeline.parsing import config_of, config_parser, options_parser
from pipeline.training.checkpoint import TrainingState, mark_best, save_checkpoint

Fail = Callable[..., str]
# The default levels are those of images of 64² and more; the tiny store's are of 32².
LEVELS = ("--model.levels", "[{side: 4, channels: 2}]")


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Fail:
    """Runs a command that must fail, and returns what it says."""

    def run(*words: object) -> str:
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert code == 2
        assert len(lines) == 1, said.err
        assert lines[0].startswith("error: ")
        assert "Traceback" not in said.out + said.err
        assert "<class" not in lines[0] and "typing." not in lines[0]
        return lines[0]

    return run


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {epochz: 4}", ["unknown key training.epochz", "training.epochs?"]),
        ("trainin: {epochs: 4}", ["trainin"]),
        (
            "data: {augmentation: {elastik: 0}}",
            ["elastik: did you mean data.augmentation.elastic?"],
        ),
        ("training: {epochs: three}", ["training.epochs", "a whole number", "three"]),
        ("training: {epochs: 1.5}", ["training.epochs", "a whole number", "1.5"]),
        ("training: {learning_rate: fast}", ["training.learning_rate", "a number", "fast"]),
        ("training: {rate_target: high}", ["training.rate_target", "a number", "null", "high"]),
        ("data: {flip: perhaps}", ["data.flip", "true or false", "perhaps"]),
        ("likelihood: {form: winer}", ["likelihood.form", "wiener", "positive_definite", "winer"]),
        ("likelihood: {scale: best}", ["likelihood.scale", "optimal", "a number", "best"]),
        ("likelihood: {kernel_size: 10}", ["likelihood.kernel_size", "odd", "10"]),
        ("model: {latent: [16, 8, 8]}", ["model.latent"]),
        ("model: {levels: 16}", ["model.levels", "16"]),
        ("model: {levels: [a]}", ["model.levels", "a"]),
        ("model: {levels: []}", ["model.levels"]),
        ("model: {levels: [{side: 6, channels: 1}]}", ["model.levels", "6"]),
        ("model: {levels: [{side: 4}]}", ["model.levels", "channels"]),
        ("model: {levels: [{side: 4, channels: many}]}", ["model.levels", "many"]),
        ("model: {levels: [{side: 4, channels: 1, opens: 0.5}]}", ["model.levels", "0.5"]),
        ("model: {levels: [{side: 4, channels: 1, depth: 2}]}", ["model.levels", "depth"]),
        (
            "model: {levels: [{side: 8, channels: 1}, {side: 4, channels: 1}]}",
            ["model.levels", "coarse to fine", "[8, 4]"],
        ),
        ("prepare: {size: 48}", ["prepare.size", "48"]),
        ("evaluation: {split: train}", ["evaluation.split", "train"]),
        ("training: {epochs: -1}", ["training.epochs", "-1"]),
        ("training: 3", ["mine.yaml", "training", "3"]),
        ("training:", ["mine.yaml", "training"]),
        ("data: {augmentation: off}", ["mine.yaml", "augmentation"]),
        ("training: {epochs: 3\nmodel: {", ["mine.yaml", "line 2"]),
        ("- training", ["mine.yaml"]),
        ("just words", ["mine.yaml"]),
        ("", ["mine.yaml"]),
        ("a: \x00", ["mine.yaml"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_configuration(
    fail: Fail, config: Callable[[str], Path], text: str, words: list[str]
) -> None:
    said = fail("train", "--config", config(text))
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--training.epochz=3", ["key --training.epochz: did you mean --training.epochs?"]),
        ("--training.widht=3", ["unknown key --training.widht", "did you mean --model.width?"]),
        ("--compare.seed=3", ["did you mean --compare.seeds?"]),
        ("--epochs=3", ["unknown key --epochs: did you mean --training.epochs?"]),
        ("--training.epochs=x", ["training.epochs", "a whole number"]),
        ("--training.epochs", ["training.epochs"]),
        ("--colour=red", ["unknown key --colour"]),
        ("more", ["unexpected more"]),
        ("training.epochs", ["unexpected training.epochs: did you mean --training.epochs?"]),
        ("--run=a/b", ["--run", "a/b"]),
        ("--run=..", ["--run"]),
        ("--restart=perhaps", ["restart", "true or false"]),
        ("--config=nowhere.yaml", ["nowhere.yaml"]),
        ("--config=.", ["config"]),
    ],
)
def test_a_wrong_argument(
    fail: Fail, config: Callable[[str], Path], argument: str, words: list[str]
) -> None:
    said = fail("train", "--config", config("training: {epochs: 1}"), argument)
    for word in words:
        assert word in said


def test_a_mistyped_key_waits_for_no_torch() -> None:
    words = ["train", "--training.epochz=3"]
    program = f"import sys, pipeline.__main__ as p; p.main({words}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n" and "epochz" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["anomaly", "--package=./p", "--image", "x.nii.gz"], "--image: x.nii.gz is not there"),
        (
            ["reconstruct", "--package", "p", "--image", "FILE", "--mask", "m.npy"],
            "--mask: m.npy is not there",
        ),
        (["reconstruct", "--package", "none", "--store", "none"], "no decoder package at"),
        (["reconstruct", "--package", "models:/a/1", "--store", "none"], "no prepared store at"),
        (
            ["lesions", "--package", "models:/a/1", "--store", "s", "--baseline", "none"],
            "no decoder package at",
        ),
        (["export", "--run", "none"], "no run at"),
        (["evaluate", "--reconstructions", "none.pt2"], "none.pt2 is not there"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_there_is_told_before_torch_is_imported(words: list[str], told: str) -> None:
    words = [word.replace("FILE", __file__) for word in words]
    program = f"import sys, pipeline.__main__ as p; p.main({words}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n" and told in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("train", "the same command continues from the last checkpoint, if there is one"),
        ("compare", "what is trained or scored is kept"),
        ("evaluate", "nothing was saved"),
    ],
)
def test_an_interruption_tells_what_the_same_command_does(
    command: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, command, stopped)
    assert main([command]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("interrupted: ") and told in line


def test_an_unknown_command(fail: Fail) -> None:
    said = fail("trian")
    assert all(word in said for word in ("trian", "train", "evaluate"))


def test_no_configuration_at_all(fail: Fail) -> None:
    assert "--config" in fail("train")
    assert "--run" in fail("evaluate")


def test_no_store(fail: Fail, config: Callable[[str], Path]) -> None:
    said = fail("train", "--config", config("training: {epochs: 1}"))
    assert "stores/mine" in said and "make prepare" in said
    assert "stores/other" in fail("train", "--data.store", "other")


@pytest.mark.parametrize(
    ("started", "makefile", "told"),
    [
        ("pipeline/__main__.py", True, ["make train", "make export RUN=a", "make prepare", "RUN="]),
        ("bin/sharp-vae", True, None),
        ("Scripts/sharp-vae.exe", False, None),
        ("bin/sharp-vae-prepare", False, None),
        ("ipykernel_launcher.py", False, None),
    ],
)
def test_messages_name_the_command_in_use(
    started: str, makefile: bool, told: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not makefile:
        monkeypatch.setattr(invocation, "MAKEFILE", Path("no/Makefile"))
    monkeypatch.setattr(sys, "argv", [started])
    installed = ["sharp-vae train", "sharp-vae export --run a", "sharp-vae-prepare", "--run "]
    found = [command("train"), command("export", run="a"), command("prepare"), run_option()]
    assert found == (told or installed)


@pytest.mark.parametrize(
    ("script", "words"), [("make", "make train"), ("bin/sharp-vae", "sharp-vae train")]
)
def test_a_message_tells_the_installed_from_the_checkout(
    fail: Fail, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    assert words in fail("export", "--run", "nobody")


def test_a_missing_run_is_told_with_what_makes_it_and_those_that_are_there(
    fail: Fail, work: Path
) -> None:
    for run in ("first", "second"):
        (work / "runs" / run).mkdir(parents=True)
        (work / "runs" / run / "config.yaml").touch()
    for which in ("evaluate", "export"):
        assert "(make train CONFIG=configs/hcp64.yaml)" in fail(which, "--run", "hcp64")
        said = fail(which, "--run", "nobody")
        assert "(make train CONFIG=…), or choose one of first, second" in said
    said = fail("evaluate", "--config", "configs/hcp64.yaml", "--run", "other")
    assert "(make train CONFIG=configs/hcp64.yaml RUN=other)" in said
    assert "(make train), or" in fail("evaluate", "--run", "demo")


def test_help_names_the_program_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, ours = tmp_path, str(tmp_path / ".venv")  # a checkout with the environment of its make
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(invocation, "MAKEFILE", tmp_path / "Makefile")
    for started, folder, prefix, name in (
        ("bin/sharp-vae", root, ours, "sharp-vae"),
        ("x", root, "/usr", "python -m pipeline"),
        ("x", root.parent, ours, "python -m pipeline"),
        ("x", root, ours, ".venv/bin/python -m pipeline"),
    ):
        monkeypatch.setattr(sys, "argv", [started])
        monkeypatch.setattr(sys, "prefix", prefix)
        monkeypatch.chdir(folder)
        main([])
        assert capsys.readouterr().out.startswith(f"usage: {name} COMMAND")


def test_a_store_of_another_schema_version(
    fail: Fail, work: Path, store_writer: Callable[..., Store]
) -> None:
    manifest = store_writer(work).path / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "schema_version": 99}))
    said = fail("train", "--data.store", "tiny")
    assert "manifest.json" in said and "99" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--likelihood.term", "bluur"], ["likelihood.term", "gaussian, laplace", "bluur"]),
        (["--training.device", "gpu"], ["training.device", "gpu"]),
        (["--model.levels", "[{side: 32, channels: 4}]"], ["model.levels", "32", "16"]),
        (["--likelihood.kernel_size", "33"], ["likelihood.kernel_size", "33"]),
    ],
    ids=str,
)
def test_what_does_not_fit_the_store(
    fail: Fail,
    work: Path,
    store_writer: Callable[..., Store],
    arguments: list[str],
    words: list[str],
) -> None:
    store_writer(work)
    fixed = ["--data.store", "tiny", "--tracking.enabled", "false", *LEVELS]
    said = fail("train", *fixed, *arguments)
    for word in words:
        assert word in said
    assert not (work / "runs/tiny/config.yaml").exists()


def test_an_unknown_run(fail: Fail) -> None:
    assert "runs/nobody" in fail("evaluate", "--run", "nobody")


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint"], ids=str)
def test_an_unreadable_checkpoint(fail: Fail, work: Path, content: bytes | None) -> None:
    checkpoints = work / "runs/mine/checkpoints"
    checkpoints.mkdir(parents=True)
    (work / "runs/mine/config.yaml").write_text(yaml.safe_dump({"data": {"store": "tiny"}}))
    if content is not None:
        _checkpoint(checkpoints, content)
    said = fail("evaluate", "--run", "mine")
    assert "runs/mine/checkpoints" in said and "train" in said


def test_a_damaged_best_checkpoint_is_not_replaced_by_another(fail: Fail, work: Path) -> None:
    checkpoints = work / "runs/mine/checkpoints"
    (work / "runs/mine").mkdir(parents=True)
    (work / "runs/mine/config.yaml").write_text(yaml.safe_dump({"data": {"store": "tiny"}}))
    save_checkpoint(checkpoints, {}, TrainingState(step=9))
    _checkpoint(checkpoints, b"damaged")
    mark_best(checkpoints, 3)
    assert "step-00000003" in fail("evaluate", "--run", "mine")


def _checkpoint(folder: Path, manifest: bytes) -> None:
    (folder / "step-00000003").mkdir(parents=True)
    (folder / "step-00000003/manifest.json").write_bytes(manifest)


def test_an_unreadable_checkpoint_to_go_on_from(
    fail: Fail, work: Path, store_writer: Callable[..., Store]
) -> None:
    store_writer(work)
    _checkpoint(work / "runs/tiny/checkpoints", b'{"schema_version": 0}')
    said = fail("train", "--data.store", "tiny")
    assert "runs/tiny/checkpoints" in said and "--restart true" in said


def test_a_damaged_run_configuration(fail: Fail, work: Path) -> None:
    run = work / "runs/mine"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("training: 3")
    assert "config.yaml" in fail("evaluate", "--run", "mine")


@pytest.mark.parametrize("kind", [PermissionError, NotADirectoryError, FileExistsError])
def test_what_the_file_system_refuses(
    fail: Fail, monkeypatch: pytest.MonkeyPatch, kind: type[OSError]
) -> None:
    def refuse(_: object) -> None:
        raise kind(13, "no", "/their/folder")

    monkeypatch.setitem(COMMANDS, "export", refuse)
    assert "/their/folder" in fail("export")


def test_mlflow_that_cannot_be_used(
    fail: Fail, work: Path, store_writer: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_writer(work)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    said = fail("train", "--data.store", "tiny", *LEVELS)
    assert "nonsense://nowhere" in said and "--tracking.enabled false" in said


def test_in_a_shell() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "--training.epochs", "many"],
        capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False,
    )  # fmt: skip
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr == "error: training.epochs: expected a whole number, not many\n"


@pytest.mark.parametrize("command", MODULES)
def test_help_says_what_each_option_is(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    options = capsys.readouterr().out.partition("exit.")[2]
    assert re.findall(r"^  --", options, re.MULTILINE)
    assert not re.findall(r"^  --\w+(?: \S+)?\s+\((?:required, )?type", options, re.MULTILINE)


def _help(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_usage_line_a_sentence_and_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _help(command, capsys)
    usage, about, *_ = said.split("\n\n")
    assert len(usage.splitlines()) == 1 and 1 <= len(about.splitlines()) <= 4
    example = said.strip().rpartition("\n\n")[2]
    assert example.startswith("example: ") and f" {command} " in " ".join(example.split())


@pytest.mark.parametrize(
    ("command", "sections"),
    [
        ("train", "data model prior likelihood training tracking"),
        ("evaluate", "evaluation tracking"),
        ("compare", "data model prior likelihood training evaluation compare tracking"),
    ],
)
def test_help_tells_the_sections_that_a_command_uses(
    command: str, sections: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _help(command, capsys)
    assert set(re.findall(r"^  --(\w+)\.", said, re.MULTILINE)) == set(sections.split())


@pytest.mark.parametrize("command", HELP)
def test_the_example_of_help_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])  # its configurations are those of the checkout
    parser = config_parser(command)
    config_of(parser, _parsed(parser, shlex.split(HELP[command].example)))


@pytest.mark.parametrize("command", EXAMPLES)
def test_the_example_of_an_options_command_is_understood(command: str) -> None:
    module = import_module(MODULES.get(command, FOREIGN))
    parser = options_parser(command, "")
    parser.add_class_arguments(module.Options)
    words = shlex.split(EXAMPLES[command])
    module.Options(**vars(_parsed(parser, words, module.Options)))


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_is_no_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "evaluate" in capsys.readouterr().out
