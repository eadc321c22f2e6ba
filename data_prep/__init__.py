"""Raw images -> a prepared store of slices that a training can read.

The names below are the face of the package, each loaded when it is first used.

    >>> from data_prep import PrepareConfig
    >>> PrepareConfig().plane
    'axial'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_prep.config import TRANSFORM_VERSION, PrepareConfig
    from data_prep.errors import InputError, VolumeError
    from data_prep.files import (
        atomic_file,
        find_folder,
        locked,
        sync_folder,
        work_folder,
        writable,
        write_text,
    )
    from data_prep.mlflow_connection import flat_keys, mlflow_address, mlflow_client, quieten_mlflow
    from data_prep.preparation import prepare
    from data_prep.store import Store, StoreError, SubjectEntry
    from data_prep.volume.loading import Volume, canonical, load_volume, read_mask
    from data_prep.volume.mask_shape import mask_shape
    from data_prep.volume.slices import PLANES, Slices
    from data_prep.volume.verify import read_verified

_HOMES = {
    "config": "TRANSFORM_VERSION PrepareConfig",
    "errors": "InputError VolumeError",
    "files": "atomic_file find_folder locked sync_folder work_folder writable write_text",
    "preparation": "prepare",
    "mlflow_connection": "flat_keys mlflow_address mlflow_client quieten_mlflow",
    "store": "Store StoreError SubjectEntry",
    "volume.loading": "Volume canonical load_volume read_mask",
    "volume.mask_shape": "mask_shape",
    "volume.slices": "PLANES Slices",
    "volume.verify": "read_verified",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "PLANES",
    "TRANSFORM_VERSION",
    "InputError",
    "PrepareConfig",
    "Slices",
    "Store",
    "StoreError",
    "SubjectEntry",
    "Volume",
    "VolumeError",
    "atomic_file",
    "canonical",
    "find_folder",
    "flat_keys",
    "load_volume",
    "locked",
    "mask_shape",
    "mlflow_address",
    "mlflow_client",
    "prepare",
    "quieten_mlflow",
    "read_mask",
    "read_verified",
    "sync_folder",
    "work_folder",
    "writable",
    "write_text",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
