"""Deep feature consistency."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.losses.base import Distortion, ReconstructionTerm
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.law import Images, Shape, Transfer
from pipeline.metrics.perceptual import WeightsNotFound, backbone_state, explain, probe

# Indices in torchvision's `features`: convolutions up to relu3_1, those whose output is compared,
# those before which 2×2 pixels are max-pooled.
CONVOLUTIONS = (0, 2, 5, 7, 10)
COMPARED = (0, 5, 10)
POOLED = (5, 10)
# torchvision's mean and standard deviation of ImageNet's channels.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Value over D of the pair of `probe` with the weights that LPIPS has been checked with.
PROBE_DISTANCE = 145.4163


class Vgg(ReconstructionTerm):
    """D · Σ_l ½ mean (Φ_l(x) − Φ_l(x̂))², a distance without unit; l = relu1_1, relu2_1, relu3_1.

    Φ_l are features of VGG trained on ImageNet, the mean is over channels and positions. Hou, Shen,
    Sun, Qiu, Deep Feature Consistent Variational Autoencoder, WACV 2017, arXiv 1610.00291, which
    calls these layers VAE-123; there VGG19, here VGG16, whose weights LPIPS uses, too. Grey images
    are repeated to three channels, intensities normalised as ImageNet's. White noise of 0.05 costs
    about 6 D.
    """

    density: ClassVar[bool] = False
    mean: Float[Tensor, "3 1 1"]
    deviation: Float[Tensor, "3 1 1"]

    def __init__(self, config: LikelihoodConfig, image_shape: Shape) -> None:
        """Raises InputError where there are no weights, ValueError for another shape."""
        super().__init__(config, image_shape)
        if image_shape[0] not in (1, 3) or min(image_shape[1:]) < 4:
            raise ValueError("likelihood.term vgg needs 1 or 3 channels, and 4 pixels a side")
        # Constants, so no part of a checkpoint.
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        try:
            state, source = backbone_state("vgg", config.vgg_weights)
        except WeightsNotFound as error:
            raise InputError(f"likelihood.vgg_weights: {error}") from error
        wrong = ""
        try:
            for index in CONVOLUTIONS:
                for kind in ("weight", "bias"):
                    value = state[f"features.{index}.{kind}"].float().clone()
                    self.register_buffer(f"{kind}{index}", value, persistent=False)
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                apart = self._distance(*probe()).item()
            if not abs(apart / PROBE_DISTANCE - 1) < 1e-3:
                wrong = (
                    f"those of {source} are not the ImageNet weights (a test pair is {apart:.4f} "
                    f"apart instead of {PROBE_DISTANCE:.4f})"
                )
        except (KeyError, RuntimeError) as error:
            wrong = f"{source} does not hold the layers of this network ({error})"
        if wrong:
            raise InputError(f"likelihood.vgg_weights: {explain('vgg', wrong)}")

    def compare(self, image: Images, reconstruction: Images, transfer: Transfer) -> Distortion:
        return Distortion(self.values * self._distance(image, reconstruction))

    def _distance(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        pairs = zip(self.features(image), self.features(reconstruction), strict=True)
        return torch.stack([0.5 * (a - b).square().mean(dim=(1, 2, 3)) for a, b in pairs]).sum(0)

    def features(self, image: Images) -> list[Float[Tensor, "B features h w"]]:
        """relu1_1, relu2_1 and relu3_1 of images of 1 or 3 channels in [0,1]."""
        signal = (image.expand(-1, 3, -1, -1) - self.mean) / self.deviation
        compared = []
        for index in CONVOLUTIONS:
            if index in POOLED:
                signal = F.max_pool2d(signal, 2)
            weight, bias = (self.get_buffer(f"{kind}{index}") for kind in ("weight", "bias"))
            signal = F.conv2d(signal, weight, bias, padding=1).relu()
            if index in COMPARED:
                compared.append(signal)
        return compared
