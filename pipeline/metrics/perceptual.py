"""LPIPS and features of its networks, with the published weights or not at all."""

import logging
import warnings

import lpips
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbones import Network, WeightsNotFound, backbone_state, explain, probe
from pipeline.metrics.fidelity import check_images, check_pair

log = logging.getLogger(__name__)

# LPIPS was fitted to judgments of 64x64 patches. Below that AlexNet's last three layers shrink to
# one position (at 32x32) or to none, so smaller images are enlarged to a shorter side of 64.
MIN_SIDE = 64
# Pixels that go through the network at once: bounds VGG's feature maps to some hundred MB.
_CHUNK_PIXELS = 2**18
# Distances of the pair of `probe` with the weights that reproduce the LPIPS authors' examples.
_PROBE_DISTANCE = {"alex": 0.16645, "vgg": 0.45477}


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
        if not abs(distance - _PROBE_DISTANCE[network]) < 1e-3:
            reason = (
                f"those of {self.source} are not the ImageNet weights (a test pair is "
                f"{distance:.4f} apart instead of {_PROBE_DISTANCE[network]:.4f})"
            )
            raise WeightsNotFound(explain(network, reason))
        log.info("LPIPS (%s) weights: %s", network, self.source)

    @torch.no_grad()
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
        check_pair(image, reconstruction)
        self._model.to(image.device)
        chunks = zip(self._chunks(image), self._chunks(reconstruction), strict=True)
        return torch.cat(
            [
                self._model(_prepare(left), _prepare(right), normalize=True).flatten()
                for left, right in chunks
            ]
        )

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
        self._model.to(images.device)
        found = []
        for chunk in self._chunks(images):
            # LPIPS scales [-1,1], which comes to ImageNet's mean and deviation on [0,1].
            layers = self._model.net(self._model.scaling_layer(2 * _prepare(chunk) - 1))
            found.append(layers[-1].mean(dim=(2, 3)))
        return torch.cat(found)

    @staticmethod
    def _chunks(images: Tensor) -> tuple[Tensor, ...]:
        """What goes through the network at once. Raises ValueError for 2 or over 3 channels."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"AlexNet and VGG16 take 1 or 3 channels, got {images.shape[1]}")
        height, width = images.shape[-2:]
        return images.split(max(1, _CHUNK_PIXELS // max(height * width, MIN_SIDE**2)))


def _prepare(images: Tensor) -> Tensor:
    """(B,1|3,H,W) in any float type to (B,3,H',W') float32 with a shorter side of 64 or more."""
    images = images.float().expand(-1, 3, -1, -1)
    height, width = images.shape[-2:]
    shorter = min(height, width)
    if shorter < MIN_SIDE:
        size = (round(height * MIN_SIDE / shorter), round(width * MIN_SIDE / shorter))
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    return images.contiguous(memory_format=torch.channels_last)
