"""MLflow's registry of decoders: packages as versions of a registered model."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from data_prep.common.tracking import (
    active_run,
    connect_mlflow,
    mlflow_address,
    mlflow_errors,
    mlflow_failures,
    open_mlflow,
    shown_address,
)
from data_prep.common.wording import command
from pipeline.errors import InputError
from pipeline.files import work_folder
from pipeline.tracking.runs import EXPERIMENT_NOTE, TrackingConfig

MODEL = "decoder"
DESCRIPTION = "Decoders as packages: latents of N(0, I) in, images out."
DIGEST = "package_digest"  # a version's tag


def register(
    package: Path, metadata: Mapping[str, Any], config: TrackingConfig, work: Path
) -> tuple[str, str, bool]:
    """Log a package as a model of its training run, a version of `EXPERIMENT-decoder`.

    A package that is registered already keeps its version. If the database lacks the training
    run, a run of the export takes its place. Aliases are the registry's users' to set.

    Returns the model's name, the version, and whether that is new. Raises InputError if MLflow
    can't be used.
    """
    client, experiment = connect_mlflow(
        config.experiment, work, EXPERIMENT_NOTE, "--register false"
    )
    name = f"{config.experiment}-decoder"
    with (
        mlflow_failures(),
        _quiet(),
        # MLflow's functions without a client use our address, too.
        mock.patch.dict(os.environ, MLFLOW_TRACKING_URI=mlflow_address(work)),
    ):
        import mlflow.pyfunc
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        from pipeline.tracking import served_decoder

        for version in client.search_model_versions(f"name='{name}'"):
            if version.tags.get(DIGEST) == metadata["digest"]:
                return name, str(version.version), False
        run_name, run_id = str(metadata["run"].get("name", "")), metadata["run"].get("id")
        if (run_id := active_run(client, run_id)) is None:
            tags = {"mlflow.runName": f"{run_name} export", "stage": "export", "run": run_name}
            run_id = client.create_run(experiment, tags=tags).info.run_id
            client.set_terminated(run_id, "FINISHED")
        outputs = client.get_run(run_id).outputs
        latent, shape = metadata["latent_size"], metadata["image_shape"]
        single = np.dtype(np.float32)
        made = Model.log(
            name=MODEL,
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            step=len(outputs.model_outputs) if outputs else 0,  # the last one wins at runs:/
            model_type="decoder",
            python_model=served_decoder.__file__,
            artifacts={"package": str(package.resolve())},
            signature=ModelSignature(
                inputs=Schema([TensorSpec(single, (-1, latent))]),
                outputs=Schema([TensorSpec(single, (-1, *shape))]),
            ),
            input_example=np.zeros((1, latent), dtype=np.float32),
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"numpy=={np.__version__}",
                f"torch=={str(metadata['pytorch_version']).partition('+')[0]}",
            ],
            registered_model_name=name,
        )
        number = str(made.registered_model_version)
        client.update_registered_model(name, DESCRIPTION)
        facts = {
            "run": run_name,
            "store_digest": str(metadata["store"].get("digest", "")),
            "simulated": str(metadata["store"].get("simulated", "")).lower(),
            DIGEST: str(metadata["digest"]),  # last: with it the version is whole
        }
        for key, value in facts.items():
            client.set_model_version_tag(name, number, key, value)
        return name, number, True


def fetch(source: str) -> Path:
    """The folder of a package from "models:/NAME@ALIAS", "models:/NAME/3" or "runs:/ID/decoder".

    A copy where MLflow's artifacts are not on this machine. Raises InputError if there is none.
    """
    uri = mlflow_address(work_folder())
    database = Path(uri.removeprefix("sqlite:///"))
    register_it = f"register one with {command('export', run='…')}"
    if uri.startswith("sqlite:///") and not database.exists():  # MLflow would make an empty one
        raise InputError(
            f"{source}: there is no MLflow database {database}: set WORK or MLFLOW_TRACKING_URI"
        )
    with mlflow_errors(
        f"{source} can't be fetched from MLflow at {shown_address(uri)}",
        f"{register_it}, or set MLFLOW_TRACKING_URI",
    ):
        import mlflow.artifacts

        with _quiet(), open_mlflow(work_folder()) as client:
            location = _location(client, source)
        if location is None:
            raise InputError(f"{source}: that run has no such model: {register_it}")
        place = mlflow.artifacts.download_artifacts(artifact_uri=location, tracking_uri=uri)
    files = sorted(Path(place).glob("**/metadata.json"))
    if not files:
        raise InputError(f"{source} holds no decoder package: {register_it}")
    return files[0].parent


def _location(client: Any, source: str) -> str | None:
    """The place where MLflow keeps the files of an address; None where a run has no such model.

    Its own look-up uses the process's global address, and writes beside the files.
    """
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    if source.startswith("models:/"):
        version = get_model_name_and_version(client, source)
        if len(version) == 2:
            return str(client.get_model_version_download_uri(*version))
        return str(client.get_logged_model(*version).artifact_location)
    run_id, _, name = source.removeprefix("runs:/").partition("/")
    outputs = client.get_run(run_id).outputs
    for output in sorted(outputs.model_outputs if outputs else (), key=lambda o: -o.step):
        model = client.get_logged_model(output.model_id)
        if model.name == name:
            return str(model.artifact_location)
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses MLflow's own messages."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
