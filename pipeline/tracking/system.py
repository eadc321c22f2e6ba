"""The load of the machine beside a run's curves: processor, memory, disk, network, GPUs."""

import contextlib
import logging
import os
from collections.abc import Iterator

# MLflow's own variable; here the measuring is on unless it says false.
SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"


@contextlib.contextmanager
def system_metrics(run_id: str, uri: str, continued: bool) -> Iterator[None]:
    """Measures in a thread while the block runs, `system/…` every 10 seconds.

    It needs psutil, for GPUs also nvidia-ml-py. Without them, or where it fails, the run goes on
    and nothing is said.

    run_id: a run with the status RUNNING; uri: MLflow's address; continued: whether the run has
    such metrics from before.
    """
    monitor = None
    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    if os.environ.get(SWITCH, "true").strip().lower() not in ("false", "0"):
        # Whatever goes wrong here (a package, a driver, a container without /proc) is no reason
        # to stop a training.
        with contextlib.suppress(Exception):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor = SystemMetricsMonitor(run_id, resume_logging=continued, tracking_uri=uri)
            monitor.start()
    try:
        yield
    finally:
        if monitor is not None:
            with contextlib.suppress(Exception):
                monitor.finish()
