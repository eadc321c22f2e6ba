"""A run of the command line that others, which are interrupted, are compared with."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import ended, forked, words_of
from tiny import TINY

from data_prep.store import Store
from pipeline.__main__ import main


@pytest.fixture(scope="package")
def work_of_all(
    tmp_path_factory: pytest.TempPathFactory, store_writer: Callable[..., Store]
) -> Path:
    """A work folder with a store, a configuration, and the uninterrupted run `one`.

    3 epochs of 6 steps. What forked processes import is paid for.
    """
    import accelerate  # noqa: F401

    folder = tmp_path_factory.mktemp("commands").resolve()
    work = folder / "work"
    store_writer(work, slices=8)
    training = TINY["training"] | {"batch_size": 4}
    (work / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"training": training}))
    with pytest.MonkeyPatch.context() as patch:
        # Elsewhere, so that no forked process inherits an open database.
        patch.setenv("WORK", str(folder / "imports"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = f"--data.store={work}/stores/tiny"
        assert main(words_of(work, "imports", store, "--training.epochs=1")) == 0
    ended(forked(work, words_of(work, "one")))
    return work
