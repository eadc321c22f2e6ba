"""`make ui`: MLflow in a real browser shows what a run tracked, figures and pictures included."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
    "evaluation.bootstrap": "20",
}
# Generous: a busy machine is no failure.
START_SECONDS, SHOW_MILLISECONDS = 300, 120_000

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(work: Path, store_writer: Callable[..., Store]) -> tuple[Any, Any, Any]:
    """A run that was trained and evaluated; MLflow's client and its two runs."""
    from mlflow import MlflowClient

    store_writer(work)
    assert (
        main(["train", "--run", "shown", *[f"--{key}={value}" for key, value in TINY.items()]]) == 0
    )
    assert main(["evaluate", "--run", "shown"]) == 0
    client = MlflowClient(f"sqlite:///{work.resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name("sharp-vae-mri")
    by_name = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    return client, by_name["shown"], by_name["shown evaluation"]


@pytest.fixture
def server(runs: object, work: Path) -> Iterator[str]:
    """Address of `make ui`, run as a user does but with the Python of these tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["make", "ui", "-o", ".venv/.installed", f"PY={sys.executable}", f"PORT={port}"]
    log = work / "ui.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(address):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        assert address in log.read_text()
        yield address
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
    own = (server, "blob:", "data:", "about:")
    elsewhere = {url for url in asked if not url.startswith(own)}
    assert not elsewhere


def test_the_browser_shows_runs_metrics_and_pictures(
    page: Any, server: str, runs: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    client, trained, scored = runs
    experiment = f"{server}/#/experiments/{trained.info.experiment_id}/runs"

    def run(which: Any, part: str) -> None:
        page.goto("about:blank")  # else the page keeps what it showed of another run
        page.goto(f"{experiment}/{which.info.run_id}{part}")

    def shot(name: str) -> None:
        page.screenshot(path=tmp_path / f"{name}.png")  # kept by pytest for whoever wants to look

    page.goto(f"{server}/#/experiments")  # the address that `make ui` prints
    page.get_by_text("sharp-vae-mri", exact=True).first.wait_for()

    page.goto(f"{experiment}?workflowType=machine_learning")
    page.get_by_role("link", name="shown", exact=True).wait_for()
    shot("runs")

    for which, names in ((trained, ("elbo", "kernel_loss")), (scored, ("psnr", "ssim"))):
        run(which, "")
        page.get_by_role("heading", name=which.info.run_name, exact=True).wait_for()
        for name in names:
            row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))
            row.get_by_text(f"{which.data.metrics[name]:.6f}"[:-1]).wait_for()
        shot(which.info.run_name)

    run(trained, "/model-metrics")
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot path.js-line').length > 2")
    shot("charts")

    # By folder and file, as a user goes there: MLflow does not find a "+" in an address.
    images = [item.path for item in client.list_artifacts(trained.info.run_id, "images")]
    grid = min(path for path in images if path.endswith(".png"))
    for which, path in ((scored, "figures/reconstructions.png"), (trained, grid)):
        run(which, "/artifacts")
        for part in path.split("/"):
            page.get_by_text(part, exact=True).first.click()
        page.get_by_text(path, exact=True).first.wait_for()
        page.wait_for_function(
            "[...document.images].some(i => i.src.startsWith('blob:') && i.naturalWidth > 200)"
        )
        shot(path.split("/")[0])
