"""A key that is true or false means true where no value follows, in both programs."""

import pytest

from data_prep import PrepareConfig
from data_prep.common.switches import switch_keys, switched
from pipeline.config import Config
from pipeline.package.export import Options

KEYS = {"--a", "--b.c"}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("--a", "--a=true"),
        ("--a --b.c", "--a=true --b.c=true"),
        ("--a false --b.c", "--a false --b.c=true"),
        ("--a=false --other --a", "--a=false --other --a=true"),
        ("--other", "--other"),
        ("", ""),
    ],
)
def test_a_bare_key_is_true_and_any_other_word_stays(given: str, read: str) -> None:
    assert switched(given.split(), KEYS) == read.split()


def test_they_are_the_fields_that_are_true_or_false_however_deep() -> None:
    assert switch_keys(PrepareConfig, "--prepare.") == {
        f"--prepare.{key}" for key in ("check", "download", "dry_run", "n4", "track")
    }
    assert switch_keys(Options) == {"--onnx", "--prior", "--register"}
    found = switch_keys(Config)
    assert {"--compare.quick", "--data.augmentation.enabled", "--prepare.check"} <= found
    assert not {"--training.epochs", "--data.augmentation", "--prepare.root"} & found
