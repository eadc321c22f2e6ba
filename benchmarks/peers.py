"""The models that are compared: VAEs of other projects and this one's, behind one interface.

Each peer keeps the loss and the optimiser that it customarily comes with; the notes say which and
from where. Batches, augmentation and batch size are the same for all.
"""

import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config
from pipeline.distributed import Processes
from pipeline.errors import InputError
from pipeline.models.config import describe_levels
from pipeline.models.vae import VAE, Posterior
from pipeline.training.objective import build_objective
from pipeline.training.step import TrainingStep

Shape = tuple[int, int, int]

PROJECT = "this project"
# The same, its whole schedule in so many seconds.
SHORT_SECONDS = 75.0
PROJECT_SHORT = f"this project, {SHORT_SECONDS:.0f} s"

# What has a chance within minutes on a CPU (of the widths tried, this one was furthest after equal
# time), and what the tutorial takes, one level deeper so that all spatial latents are of one size.
MONAI_CHANNELS = (16, 32, 32, 64)
MONAI_FULL_CHANNELS = (128, 256, 384, 384)
# Batches of 64 in an epoch of CelebA's 162,770 training images, which PyTorch-VAE was tuned on.
CELEBA_EPOCH = 2543


class Contestant(Protocol):
    """A model that trains itself batch by batch and shows what it has learned."""

    name: str
    notes: str
    """Loss, optimiser and source, a sentence or two for the table's notes."""

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""

    def step(self, batch: Tensor) -> Tensor:
        """One training step on images (B,C,H,W) in [0,1]. Returns the loss (), detached."""

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B,C,H,W) -> its reconstruction from the posterior's mean, rate (B,) in nats."""


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class Peer(ABC):
    """Somebody else's network with its one optimiser and its loss."""

    name: str
    notes: str

    def __init__(self, network: nn.Module, learning_rate: float, device: torch.device) -> None:
        self.network = network.to(device)
        # Fused is the same arithmetic in fewer passes: peers shall not lose time by the optimiser.
        self.optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)

    @property
    def parameters(self) -> int:
        return count(self.network)

    @abstractmethod
    def loss(self, batch: Tensor) -> Tensor:
        """What is minimised, () for images (B,C,H,W) in [0,1]."""

    @abstractmethod
    def encode(self, images: Tensor) -> Posterior:
        """(B,C,H,W) in [0,1] -> posterior."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Latent -> (B,C,H,W) in [0,1]."""

    def step(self, batch: Tensor) -> Tensor:
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.network.eval()
        posterior = self.encode(images)
        return self.decode(posterior.mean), posterior.rate()


class MonaiAutoencoderKL(Peer):
    """MONAI's AutoencoderKL with the loss of its 2-D tutorial, less what needs other networks.

    Source: Project-MONAI/tutorials, generation/2d_autoencoderkl: L1 (mean over pixels) + 1e-6 · KL
    (sum over the latent), Adam at 1e-4, one residual block a level, attention at the last level,
    GroupNorm of 32 (fewer where a level has fewer channels). The tutorial adds a perceptual loss
    (weight 0.001) and an adversarial one (0.01), and has three levels of (128, 256, 384) channels
    with a latent of 8 channels at a quarter of the image's side.
    """

    name = "MONAI AutoencoderKL"

    def __init__(
        self, shape: Shape, device: torch.device, channels: Sequence[int] = MONAI_CHANNELS
    ) -> None:
        from monai.networks.nets import AutoencoderKL  # slow to import

        network = AutoencoderKL(
            spatial_dims=2,
            in_channels=shape[0],
            out_channels=shape[0],
            channels=tuple(channels),
            latent_channels=16,
            num_res_blocks=1,
            norm_num_groups=min(32, *channels),
            attention_levels=(*[False] * (len(channels) - 1), True),
        )
        super().__init__(network, 1e-4, device)
        part = 2 ** (len(channels) - 1)
        self.notes = (
            "MONAI's 2-D tutorial: L1 + 1e-6·KL, Adam 1e-4, without its perceptual and adversarial "
            f"losses; channels {tuple(channels)}, latent of 16 channels at 1/{part} of the side"
        )

    def loss(self, batch: Tensor) -> Tensor:
        reconstruction, mean, deviation = self.network(batch)
        rate = Posterior(mean, 2 * deviation.log()).rate()
        return F.l1_loss(reconstruction, batch) + 1e-6 * rate.mean()

    def encode(self, images: Tensor) -> Posterior:
        mean, deviation = self.network.encode(images)
        return Posterior(mean, 2 * deviation.log())

    def decode(self, latent: Tensor) -> Tensor:
        return self.network.decode(latent).clamp(0.0, 1.0)


class PythaeVAE(Peer):
    """pythae's VAE with its networks for CelebA, as its own CelebA configuration trains it.

    Source: pythae 0.1.2, models.VAE and models.nn.benchmarks.celeba; clementchadebec/benchmark_VAE,
    examples/scripts/configs/celeba: latent of 64, ½·squared error + KL, Adam at 1e-4 (also the
    default of its trainer). The networks take 3 channels of 64x64: grey images are repeated, each
    channel enters the loss, and reconstructions are the mean of the three.
    """

    name = "pythae VAE"
    notes = (
        "pythae's networks and settings for CelebA: ½·squared error + KL, Adam 1e-4, latent [64]; "
        "its 3 channels are the grey image thrice, averaged afterwards"
    )

    def __init__(self, shape: Shape, device: torch.device) -> None:
        from pythae.models import VAE, VAEConfig
        from pythae.models.nn.benchmarks.celeba import (
            Decoder_Conv_AE_CELEBA,
            Encoder_Conv_VAE_CELEBA,
        )

        if not self.fits(shape):
            raise InputError(f"pythae's CelebA networks take images of 64x64, not {shape}")
        config = VAEConfig(input_dim=(3, 64, 64), latent_dim=64, reconstruction_loss="mse")
        network = VAE(config, Encoder_Conv_VAE_CELEBA(config), Decoder_Conv_AE_CELEBA(config))
        super().__init__(network, 1e-4, device)
        self.channels = shape[0]

    @staticmethod
    def fits(shape: Shape) -> bool:
        return shape[1:] == (64, 64)

    def loss(self, batch: Tensor) -> Tensor:
        return self.network({"data": self._coloured(batch)}).loss

    def encode(self, images: Tensor) -> Posterior:
        found = self.network.encoder(self._coloured(images))
        return Posterior(found.embedding, found.log_covariance)

    def decode(self, latent: Tensor) -> Tensor:
        image = self.network.decoder(latent).reconstruction
        return image if self.channels == 3 else image.mean(dim=1, keepdim=True)

    def _coloured(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)


class ClassicNetwork(nn.Module):
    """Strided 3x3 convolutions of 32 to 512 channels and their transposes around a vector latent.

    (B,C,H,W) in [-1,1] -> mean and log-variance (B,L); (B,L) -> (B,C,H,W) in [-1,1].
    """

    WIDTHS = (32, 64, 128, 256, 512)

    def __init__(self, shape: Shape, latent: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.bottom = (self.WIDTHS[-1], height // 32, width // 32)
        flat = math.prod(self.bottom)
        down: list[nn.Module] = []
        for narrow, wide in zip((channels, *self.WIDTHS), self.WIDTHS, strict=False):
            down += [nn.Conv2d(narrow, wide, 3, 2, 1), nn.BatchNorm2d(wide), nn.LeakyReLU()]
        self.down = nn.Sequential(*down, nn.Flatten())
        self.head = nn.Linear(flat, 2 * latent)
        up: list[nn.Module] = [nn.Linear(latent, flat), nn.Unflatten(1, self.bottom)]
        for wide, narrow in zip(self.WIDTHS[::-1], (*self.WIDTHS[-2::-1], 32), strict=True):
            up += [nn.ConvTranspose2d(wide, narrow, 3, 2, 1, output_padding=1)]
            up += [nn.BatchNorm2d(narrow), nn.LeakyReLU()]
        self.up = nn.Sequential(*up, nn.Conv2d(32, channels, 3, padding=1), nn.Tanh())

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.head(self.down(images)).chunk(2, dim=1)
        return mean, log_variance


class ClassicVAE(Peer):
    """The ConvTranspose VAE of the PyTorch-VAE collection (VanillaVAE), written anew.

    Source: AntixK/PyTorch-VAE, configs/vae.yaml: images in [-1,1], mean squared error
    + 0.00025 · KL, latent of 128, Adam at 0.005 with a decay of 0.95 an epoch. An epoch there is
    one of CelebA, 2543 steps, and is so here: an epoch of a store of some hundred slices lasts a
    second, and a decay with it would end learning within a minute.
    """

    name = "ConvTranspose VAE"
    notes = (
        "settings of the PyTorch-VAE collection: MSE + 0.00025·KL, images in [-1,1], latent [128], "
        f"Adam 0.005, decay 0.95 every {CELEBA_EPOCH} steps (its epoch)"
    )

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        latent: int = 128,
        learning_rate: float = 5e-3,
        decay: float = 0.95,
    ) -> None:
        """decay: of the learning rate, every CELEBA_EPOCH steps."""
        super().__init__(ClassicNetwork(shape, latent), learning_rate, device)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, CELEBA_EPOCH, gamma=decay)

    def loss(self, batch: Tensor) -> Tensor:
        posterior = self.encode(batch)
        reconstruction = self.network.up(posterior.sample())
        return F.mse_loss(reconstruction, 2 * batch - 1) + 0.00025 * posterior.rate().mean()

    def step(self, batch: Tensor) -> Tensor:
        loss = super().step(batch)
        self.schedule.step()
        return loss

    def encode(self, images: Tensor) -> Posterior:
        return Posterior(*self.network.encode(2 * images - 1))

    def decode(self, latent: Tensor) -> Tensor:
        return (self.network.up(latent) + 1) / 2


class OptimalSigmaVAE(ClassicVAE):
    """The same network under its own ELBO, the Gaussian's σ² the batch's mean squared error.

    Source: Rybkin, Daniilidis, Levine, Simple and Effective VAE Training with Calibrated Decoders
    (σ-VAE, ICML 2021, arXiv 2006.13202), and its code, orybkin/sigma-vae-pytorch: images in [0,1],
    −log N(x; x̂, σ²I) + KL, sums over dimensions, no weight to choose, Adam at 1e-3. The harder of
    the two: how many nats it spends follows from the data, not from a weight for CelebA.
    """

    name = "ConvTranspose VAE, optimal σ"
    notes = (
        "the same network as a σ-VAE (Rybkin 2021): Gaussian NLL under σ² = the batch's mean "
        "squared error, + KL, both summed over dimensions, images in [0,1], latent [128], Adam 1e-3"
    )
    # σ is not less than a step of 256 levels: the NLL of a perfect image would be −∞.
    LEAST_VARIANCE = (1 / 255) ** 2

    def __init__(self, shape: Shape, device: torch.device, latent: int = 128) -> None:
        super().__init__(shape, device, latent, learning_rate=1e-3, decay=1.0)

    def loss(self, batch: Tensor) -> Tensor:
        posterior = self.encode(batch)
        residual = batch - self.decode(posterior.sample())
        values = residual[0].numel()
        variance = residual.square().mean().clamp_min(self.LEAST_VARIANCE)
        power = residual.square().flatten(1).sum(dim=1)
        nll = 0.5 * (power / variance + values * (2 * math.pi * variance).log())
        return (nll + posterior.rate()).mean()


class Project:
    """This project's training step on a configuration; the blur term as after its warm-up."""

    name = PROJECT

    def __init__(self, shape: Shape, processes: Processes, config: Config) -> None:
        self.objective = build_objective(config, shape)
        self.training_step = TrainingStep(self.objective, config.training, processes)
        self.notes = project_notes(config)

    @property
    def parameters(self) -> int:
        return count(self.objective)

    def step(self, batch: Tensor) -> Tensor:
        shape = (len(batch), self.objective.vae.latent_size)
        found = self.training_step(batch, torch.randn(shape, device=batch.device))
        return torch.tensor(found.get("kernel_loss", 0.0) - found.get("elbo", math.nan))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return reconstruct(self.objective.vae, images)


def reconstruct(vae: VAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """(B,C,H,W) -> its reconstruction from the means, rate (B,) in nats of a draw.

    On the way down through the means the rate is another than the posterior's.
    """
    random = torch.Generator(images.device).manual_seed(0)
    drawn = vae.infer(images, vae.prior_latents(len(images), random))
    return vae.infer(images).reconstruction, drawn.posterior.rate()


def project_notes(config: Config) -> str:
    term, model, training = config.likelihood, config.model, config.training
    form = f", {term.form}, C = {term.constant:g}" if term.term == "blur" else ""
    return (
        f"−ELBO (β = {training.beta:g}) under the {term.term} term{form}, levels "
        f"{describe_levels(model.levels)}, width {model.width}, "
        f"Adam {training.learning_rate:g} with cosine decay by the clock, averaged weights"
    )


def peers(
    shape: Shape, device: torch.device, monai_channels: Sequence[int] = MONAI_CHANNELS
) -> dict[str, Callable[[], Contestant]]:
    """The peers that can take images of `shape`, by name, each built when it is called.

    Raises InputError where a package is missing, or MONAI can't have the channels.
    """
    if any(width < 1 or width % min(32, *monai_channels) for width in monai_channels):
        raise InputError(
            f"MONAI's channels must be multiples of 32, or of the least: {list(monai_channels)}"
        )
    # MONAI's attention needs einops, which does not come with it.
    for package in ("einops", "pythae"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{package} is not installed: make bench installs it")
    found: dict[str, Callable[[], Contestant]] = {
        MonaiAutoencoderKL.name: partial(MonaiAutoencoderKL, shape, device, monai_channels)
    }
    if PythaeVAE.fits(shape):
        found[PythaeVAE.name] = partial(PythaeVAE, shape, device)
    for kind in (ClassicVAE, OptimalSigmaVAE):
        found[kind.name] = partial(kind, shape, device)
    return found
