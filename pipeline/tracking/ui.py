"""Open MLflow's pages at the runs, in the view of model training.

python -m pipeline ui [--port 5000]
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.common.errors import require
from data_prep.common.tracking import (
    HIDDEN,
    mlflow_address,
    mlflow_errors,
    open_mlflow,
    quieten_mlflow,
    shown_address,
)
from data_prep.common.wording import command
from pipeline.errors import InputError
from pipeline.files import work_folder
from pipeline.tracking.runs import VIEW, TrackingConfig

HOST = "127.0.0.1"
# Set in a session on another machine, or in a job: a browser there shows nobody anything.
ELSEWHERE = ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY", "CI")


@dataclass(frozen=True)
class Options:
    """The experiment to show, and a place for its pages."""

    port: int = 5000
    """Port of MLflow's pages on this machine."""
    experiment: str = TrackingConfig.experiment
    """The experiment that is opened."""
    browser: Literal["auto", "always", "never"] = "auto"
    """Open a browser; auto: on a desktop, not over ssh and not in a job."""

    def __post_init__(self) -> None:
        require("ui", self, ">= 1, <= 65535", "port")


def run(options: Options) -> None:
    """The command: MLflow's server, until Ctrl-C; of a given server only its address.

    Raises InputError if nothing was tracked yet, or the port is in use.
    """
    quieten_mlflow()
    uri = mlflow_address(work_folder())
    show = options.browser == "always" or (options.browser == "auto" and has_desktop(os.environ))
    if uri.startswith(("http://", "https://")):
        # A browser asks for user and password itself.
        server = shown_address(uri).replace(f"{HIDDEN}@", "").partition("?")[0].rstrip("/")
        try:
            address = f"{server}/{page_of(uri, options.experiment)}"
        except InputError as error:  # another machine may reach it
            print(f"note: {error}")
            address = server
        print(f"MLFLOW_TRACKING_URI is a server: open {address} in a browser")
        if show:
            webbrowser.open(address)
        return
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not database.exists():
        raise InputError(f"there is no {database} yet: first train a run ({command('train')})")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, options.port))
        except OSError as error:
            raise InputError(
                f"port {options.port} can't be used ({error.strerror}): choose another, as in "
                "make ui PORT=5001"
            ) from error
    address = f"http://{HOST}:{options.port}/{page_of(uri, options.experiment)}"
    print("MLflow starts, which takes some seconds", flush=True)
    # A line for each picture of a page would push the address out of sight.
    words = ["--host", HOST, "--port", str(options.port), "--workers", "1"]
    words += ["--uvicorn-opts", "--log-level warning"]
    # The address goes by the environment, not as a word: it may hold a password.
    settings = {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_REGISTRY_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    quiet = {"MLFLOW_LOGGING_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore"}
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as Ctrl-C does
    pages = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "ui", *words], env=quiet | os.environ | settings
    )
    try:
        while pages.poll() is None and not answers(options.port):
            time.sleep(0.3)
        if pages.poll() is None:
            print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
            if show:
                webbrowser.open(address)
        pages.wait()
    finally:
        pages.terminate()


def has_desktop(environment: Mapping[str, str], platform: str = sys.platform) -> bool:
    """True where somebody sits before this machine's own screen."""
    if any(environment.get(name) for name in ELSEWHERE):
        return False
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    return platform in ("darwin", "win32") or any(environment.get(name) for name in screens)


def page_of(uri: str, experiment: str) -> str:
    """The experiment's page, within MLflow's; the list of experiments where there is none yet.

    Raises InputError if MLflow can't be asked.
    """
    with (
        mlflow_errors(
            f"MLflow can't be used at {shown_address(uri)}", "check WORK and MLFLOW_TRACKING_URI"
        ),
        open_mlflow(work_folder()) as client,
    ):
        known = client.get_experiment_by_name(experiment)
    return f"#/experiments/{known.experiment_id}/runs?{VIEW}" if known else f"#/experiments?{VIEW}"


def answers(port: int) -> bool:
    """True where MLflow answers on a port of this machine, past any proxy."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
