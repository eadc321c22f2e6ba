"""MLflow's registry of decoders: versions by name. Aliases are set by the registry's users."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.invocation import command
from data_prep.common.mlflow_connection import (
    mlflow_address,
    mlflow_reason,
    open_mlflow,
    quieten_mlflow,
)
from data_prep.common.redaction import shown_address
from pipeline.errors import InputError
from pipeline.files import work_folder
from pipeline.tracking.runs import TrackingConfig, active_run, connect, mlflow_failures

MODEL = "decoder"
INSTEAD = "--register false"
DESCRIPTION = "Decoders as packages: latents of N(0, I) in, images out."
DIGEST = "package_digest"  # a version's tag


class Registry:
    """The registered model `<experiment>-decoder` of one experiment."""

    def __init__(self, config: TrackingConfig, work: Path) -> None:
        """Raises InputError if MLflow can't be used."""
        self.client, self.experiment = connect(config, work, INSTEAD)
        self.name = f"{config.experiment}-decoder"

    def add(self, package: Path, metadata: Mapping[str, Any]) -> tuple[str, bool]:
        """Log the package as a model of its training run, and register it.

        A package that is registered already keeps its version. If the database lacks the
        training run, a run of the export takes its place.

        Returns the version, and whether it is new.
        """
        with mlflow_failures(), _quiet():
            for version in self._versions():
                if version.tags.get(DIGEST) == metadata["digest"]:
                    return str(version.version), False
            tags = {
                DIGEST: str(metadata["digest"]),
                "run": str(metadata["run"].get("name", "")),
                "store_digest": str(metadata["store"].get("digest", "")),
                "simulated": str(metadata["store"].get("simulated", "")).lower(),
            }
            run_id = active_run(self.client, metadata["run"].get("id")) or self._run(tags["run"])
            model = self._log(package, metadata, run_id)
            # Not models:/ID, which MLflow looks up at its global address and not at the client's.
            made = self.client.create_model_version(
                self.name, model.artifact_location, run_id=run_id, tags=tags,
                model_id=model.model_id,
            )  # fmt: skip
            return str(made.version), True

    def _versions(self) -> list[Any]:
        """All versions; creates the registered model if it is missing."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name, description=DESCRIPTION)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return list(self.client.search_model_versions(f"name='{self.name}'"))

    def _run(self, name: str) -> str:
        tags = {"mlflow.runName": f"{name} export", "stage": "export", "run": name}
        run = self.client.create_run(self.experiment, tags=tags)
        self.client.set_terminated(run.info.run_id, "FINISHED")
        return run.info.run_id

    def _log(self, package: Path, metadata: Mapping[str, Any], run_id: str) -> Any:
        """The package as a logged model with signature and example."""
        import mlflow.pyfunc
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        from pipeline.tracking import served_decoder

        latent, image = metadata["latent_size"], metadata["image_shape"]
        single = np.dtype(np.float32)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(single, (-1, latent))]),
            outputs=Schema([TensorSpec(single, (-1, *image))]),
        )
        example = np.zeros((1, latent), dtype=np.float32)
        run = self.client.get_run(run_id)
        model = self.client.create_logged_model(
            run.info.experiment_id, MODEL, source_run_id=run_id, model_type="decoder"
        )
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=served_decoder.__file__,
                artifacts={"package": str(package.resolve())},
                signature=signature,
                input_example=example,
                pip_requirements=_requirements(metadata),
                mlflow_model=Model(
                    artifact_path=model.artifact_location,
                    model_uuid=model.model_id,
                    run_id=run_id,
                    model_id=model.model_id,
                ),
            )
            self.client.log_model_artifacts(model.model_id, str(folder))
        step = len(run.outputs.model_outputs) if run.outputs else 0  # the last one wins at runs:/
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        self.client.finalize_logged_model(model.model_id, "READY")
        return model


def fetch(source: str) -> Path:
    """The folder of a package from "models:/NAME@ALIAS", "models:/NAME/3" or "runs:/ID/decoder".

    A copy where MLflow's artifacts are not on this machine. Raises InputError if there is none.
    """
    quieten_mlflow()
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # of a file that is no database

    uri = mlflow_address(work_folder())
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not database.exists():  # MLflow would make an empty one
        raise InputError(
            f"{source}: there is no MLflow database {database}: set WORK or MLFLOW_TRACKING_URI"
        )
    try:
        with _quiet():
            with open_mlflow(work_folder()) as client:
                location = _location(client, source)
            place = mlflow.artifacts.download_artifacts(artifact_uri=location, tracking_uri=uri)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise InputError(
            f"{source} can't be fetched from MLflow at {shown_address(uri)} "
            f"({mlflow_reason(error)}): register it with {command('export', run='…')}, or set "
            "MLFLOW_TRACKING_URI"
        ) from None  # the cause may repeat a password
    found = sorted(Path(place).glob("**/metadata.json"))
    if not found:
        raise InputError(
            f"{source} holds no decoder package: register one with {command('export', run='…')}"
        )
    return found[0].parent


def _location(client: Any, source: str) -> str:
    """Where MLflow keeps the files of an address.

    Looked up here, because MLflow's own look-up uses the process's global tracking address.
    """
    kind, _, rest = source.partition(":/")
    if kind == "runs":
        run_id, _, model_name = rest.partition("/")
        outputs = client.get_run(run_id).outputs
        for output in sorted(outputs.model_outputs if outputs else (), key=lambda o: -o.step):
            model = client.get_logged_model(output.model_id)
            if model.name == model_name:
                return str(model.artifact_location)
        raise InputError(
            f"{source}: that run has no model {model_name!r}: register one with "
            f"{command('export', run='…')}"
        )
    name, at, alias = rest.rpartition("@")
    if at:
        number = client.get_model_version_by_alias(name, alias).version
    else:
        name, _, number = rest.rpartition("/")
        if not name or not number.isdecimal():
            raise InputError(f"{source}: write models:/NAME/3, models:/NAME@ALIAS or "
                             f"runs:/ID/{MODEL}")  # fmt: skip
    return str(client.get_model_version_download_uri(name, str(number)))


def _requirements(metadata: Mapping[str, Any]) -> list[str]:
    import mlflow

    torch = str(metadata["pytorch_version"]).partition("+")[0]
    return [f"mlflow=={mlflow.__version__}", f"numpy=={np.__version__}", f"torch=={torch}"]


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
