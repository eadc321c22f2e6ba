"""InceptionV3, the network that FID has been measured with since 2017."""

import io
import logging
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.image.fid import NoTrainInceptionV3

from pipeline.backbones import WeightsNotFound, explain_inception, load_state
from pipeline.metrics.fidelity import check_images

log = logging.getLogger(__name__)

# Images that go through the network at once, enlarged to 299x299.
_CHUNK = 16


class InceptionFeatures:
    """The 2048 features that FID compares: InceptionV3's last average pool.

    Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, GANs Trained by a Two Time-Scale Update
    Rule Converge to a Local Nash Equilibrium, NeurIPS 2017; the network of 2015-12-05, its resizing
    that of TensorFlow 1 (torchmetrics with antialias off), as in the original.
    """

    def __init__(self, path: Path) -> None:
        """path: from `inception_weights`. Raises WeightsNotFound where it is no such state dict."""
        self.size = 2048
        try:
            state = load_state(path)
            # The library would unpickle the file with no restriction: it gets a copy of ours, of
            # nothing but tensors. It draws weights first; the run's generator must not notice.
            copy = io.BytesIO()
            torch.save(state, copy)
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
            raise WeightsNotFound(explain_inception(reason)) from error
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
        return torch.cat(
            [self._model(chunk.expand(-1, 3, -1, -1)) for chunk in levels.split(_CHUNK)]
        )
