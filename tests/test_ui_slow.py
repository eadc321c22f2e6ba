"""`make ui`: MLflow in a real browser shows what a run tracked, figures and pictures included."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from data_prep.store import Store
from pipeline.__main__ import main

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]
TINY = {
    "data.store": "tiny",
    "model.levels": "[{side: 1, channels: 8}]",
    "model.width": "8",
    "likelihood.kernel_size": "5",
    "likelihood.warmup_epochs": "1",
    "training.epochs": "2",
    "training.batch_size": "6",
    "prior.images": "40",
    "evaluation.samples": "8",
}
# Generous: a busy machine is no failure.
START_SECONDS, SHOW_MILLISECONDS = 300, 120_000

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Tracked:
    """MLflow's client and what it holds: two trainings, the evaluation of the first, a decoder."""

    client: Any
    blur: Any
    gaussian: Any
    scored: Any


@pytest.fixture
def runs(work: Path, store_writer: Callable[..., Store]) -> Tracked:
    """A run under each of two terms; one of them is scored and exported."""
    from mlflow import MlflowClient

    store_writer(work)
    options = [f"--{key}={value}" for key, value in TINY.items()]
    assert main(["train", "--run", "tiny", *options]) == 0
    assert main(["train", "--run", "other", *options, "--likelihood.term=gaussian"]) == 0
    assert main(["evaluate", "--run", "tiny"]) == 0
    assert main(["export", "--run", "tiny"]) == 0
    client = MlflowClient(f"sqlite:///{work.resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name("sharp-vae-mri")
    by_name = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    return Tracked(
        client,
        by_name["tiny, blur, seed 0"],
        by_name["tiny, gaussian, seed 0 (other)"],
        by_name["tiny, blur, seed 0: test"],
    )


@pytest.fixture
def server(runs: object, work: Path) -> Iterator[tuple[str, str]]:
    """`make ui`, run as a user does but with the Python of these tests.

    Its address, and the address that it prints.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "make", "ui", "-o", ".venv/.installed", f"PY={sys.executable}", f"PORT={port}",
        "ARGS=--browser never",
    ]  # fmt: skip
    log = work / "ui.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (printed := re.search(r"^open (\S+) in a browser", log.read_text(), re.M)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        assert _answers(address)
        yield address, printed[1]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.fixture
def page(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of headless Chromium; with no error of the page and no call to another machine."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    server = request.getfixturevalue("server")
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    asked: set[str] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(SHOW_MILLISECONDS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.add(request.url))
        yield page
        page.close()
        browser.close()
    assert not errors
    own = (server[0], "blob:", "data:", "about:")
    elsewhere = {url for url in asked if not url.startswith(own)}
    assert not elsewhere


def test_a_walk_through_the_pages_shows_runs_charts_pictures_and_the_registry(
    page: Any, server: tuple[str, str], runs: Tracked, tmp_path: Path
) -> None:
    """Every step asserts what is seen; pytest keeps the pictures for whoever wants to look."""
    base, printed = server
    experiment = f"{base}/#/experiments/{runs.blur.info.experiment_id}"
    view = "workflowType=machine_learning"

    def go(address: str) -> None:
        page.goto("about:blank")  # else the page keeps what it showed before
        page.goto(address)

    def seen(text: str) -> None:
        page.get_by_text(text, exact=True).first.wait_for()

    def shot(name: str) -> None:
        page.screenshot(path=tmp_path / f"{name}.png")

    # The address that `make ui` prints: our experiment, as one of model training, described.
    assert printed == f"{experiment}/runs?{view}"
    go(printed)
    for run in (runs.blur, runs.gaussian):
        page.get_by_role("link", name=run.info.run_name, exact=True).wait_for()
    page.get_by_text("Trainings, with their evaluations nested below").first.wait_for()
    assert page.get_by_text("Evaluation runs").count() == 0  # of the view for language models
    close = page.get_by_role("button", name="Close")  # MLflow's assistant
    if close.count():
        close.first.click()
    # The evaluation is below its training.
    assert page.get_by_role("link", name=runs.scored.info.run_name, exact=True).count() == 0
    row = page.get_by_role("row").filter(has=page.get_by_text(runs.blur.info.run_name, exact=True))
    row.get_by_role("button").first.click()
    page.get_by_role("link", name=runs.scored.info.run_name, exact=True).wait_for()
    shot("runs")

    # One chart of two terms: a line of each.
    go(f"{experiment}/runs?{view}&compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").fill("validation/psnr")
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot path.js-line').length >= 2")
    shot("charts")

    # A run: its description, headline scores and curves; its evaluation.
    go(f"{experiment}/runs/{runs.blur.info.run_id}?{view}")
    page.get_by_role("heading", name=runs.blur.info.run_name, exact=True).wait_for()
    page.get_by_text("the same slices and their reconstructions, by epoch").first.wait_for()
    table = page.get_by_role("row").filter(has=page.get_by_text("train/elbo", exact=True))
    table.get_by_text(f"{runs.blur.data.metrics['train/elbo']:.6f}"[:-1]).wait_for()
    shot("run")
    go(f"{experiment}/runs/{runs.scored.info.run_id}?{view}")
    page.get_by_role("heading", name=runs.scored.info.run_name, exact=True).wait_for()
    row = page.get_by_role("row").filter(has=page.get_by_text("test/ssim", exact=True))
    row.get_by_text(f"{runs.scored.data.metrics['test/ssim']:.6f}"[:-1]).wait_for()
    assert page.get_by_text("test/ssim_low").count() == 0
    shot("evaluation")

    # Figures, and images by epoch: by folder and file, as MLflow does not find a "+" in an address.
    images = [item.path for item in runs.client.list_artifacts(runs.blur.info.run_id, "images")]
    grids = sorted(path for path in images if path.endswith(".png"))
    assert len(grids) == 1 + int(TINY["training.epochs"])
    for run, path in (
        (runs.scored, "figures/reconstructions.png"), (runs.blur, grids[0]), (runs.blur, grids[-1]),
    ):  # fmt: skip
        go(f"{experiment}/runs/{run.info.run_id}/artifacts?{view}")
        for part in path.split("/"):
            page.get_by_text(part, exact=True).first.click()
        seen(path)
        page.wait_for_function(
            "[...document.images].some(i => i.src.startsWith('blob:') && i.naturalWidth > 200)"
        )
        shot(path.split("/")[0])

    # The intervals, as a table.
    go(f"{experiment}/runs/{runs.scored.info.run_id}/artifacts?{view}")
    page.get_by_text("scores.json", exact=True).first.click()
    page.get_by_text("low", exact=True).first.wait_for()
    seen("test/psnr")
    shot("scores")

    # A comparison of the two.
    both = json.dumps([runs.blur.info.run_id, runs.gaussian.info.run_id])
    inside = json.dumps([runs.blur.info.experiment_id])
    go(f"{base}/#/compare-runs?runs={quote(both)}&experiments={quote(inside)}")
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    for run in (runs.blur, runs.gaussian):
        seen(run.info.run_name)
    shot("comparison")

    # The registry: the decoder.
    go(f"{base}/#/models/sharp-vae-mri-decoder")
    seen("Version 1")
    shot("registry")
