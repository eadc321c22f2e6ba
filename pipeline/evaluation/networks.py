"""The pretrained networks of the metrics, where their weights are here."""

import logging
from dataclasses import dataclass, field

from pipeline.backbones import Network, WeightsNotFound, inception_weights
from pipeline.config import EvaluationConfig
from pipeline.errors import InputError
from pipeline.metrics.distribution import ImageSets
from pipeline.metrics.inception import InceptionFeatures
from pipeline.metrics.perceptual import PerceptualDistance

log = logging.getLogger(__name__)


@dataclass
class Networks:
    """LPIPS by metric name, networks whose features are compared, and what is not here, and why."""

    distances: dict[str, PerceptualDistance] = field(default_factory=dict)
    inception: InceptionFeatures | None = None
    absent: dict[str, str] = field(default_factory=dict)

    def image_sets(self) -> list[ImageSets]:
        """Empty sets of images, one for each network whose features are compared."""
        sets = []
        if vgg := self.distances.get("lpips_vgg"):
            sets.append(ImageSets(vgg, {"kid": "kid_vgg16", "frechet": "fd_vgg16"}))
        if self.inception:
            sets.append(ImageSets(self.inception, {"frechet": "fid"}))
        return sets

    def leave_out(self, keys: list[str], reason: WeightsNotFound, told: str) -> None:
        """Note that metrics are left out, with all ways to get the weights, and log it in a line.

        told: what the line says beside the metrics.
        """
        log.warning("left out: %s; %s", ", ".join(keys), told)
        self.absent |= dict.fromkeys(keys, str(reason))


def load_networks(settings: EvaluationConfig) -> Networks:
    """The networks whose weights are here.

    Raises InputError, naming the key, where weights that were asked for by path can't be used:
    leaving the metric out would hide the mistake.
    """
    found = Networks()
    paths: dict[Network, str] = {
        "alex": settings.lpips_alex_weights,
        "vgg": settings.lpips_vgg_weights,
    }
    for network, weights in paths.items():
        name = f"lpips_{network}"
        try:
            found.distances[name] = PerceptualDistance(network, weights, settings.download)
        except WeightsNotFound as error:
            if weights:
                raise InputError(f"evaluation.{name}_weights: {error}") from error
            others = _with_samples("kid_vgg16", "fd_vgg16") if network == "vgg" else []
            found.leave_out([name, *others], error, str(error))
    try:
        path = inception_weights(settings.inception_weights, settings.download)
        found.inception = InceptionFeatures(path)
    except WeightsNotFound as error:
        if settings.inception_weights:
            raise InputError(f"evaluation.inception_weights: {error}") from error
        # Few have these weights, and KID and FD do without: no need to hear of every way each time.
        ways = "evaluation.inception_weights or evaluation.download true give them"
        found.leave_out(_with_samples("fid"), error, f"{error.short} ({ways})")
    return found


def _with_samples(*names: str) -> list[str]:
    return [*names, *(f"sample_{name}" for name in names)]
