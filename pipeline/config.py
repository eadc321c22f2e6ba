"""The one configuration: a frozen dataclass per section, read from YAML by jsonargparse.

Sections of packages below this floor are defined beside their component; `training`, `evaluation`
and `compare`, whose packages are above, are defined here, so that imports run downwards only.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from data_prep import PrepareConfig, Store
from data_prep.common.command_line import ConfigFile, Parser, command_parser
from data_prep.common.errors import require
from data_prep.common.files import find_folder
from pipeline.data.config import DataConfig
from pipeline.losses.config import LikelihoodConfig
from pipeline.models.config import ModelConfig, PriorConfig
from pipeline.tracking.runs import TrackingConfig


def work_keys(section: Any) -> frozenset[str]:
    """Fields of a section that say how the work is done, and decide nothing of what comes out.

    They bear the metadata {"decides": "nothing"}. Those that only say where files lie bear
    {"where": True}: data_prep.config.where_keys.
    """
    return frozenset(f.name for f in fields(section) if f.metadata.get("decides") == "nothing")


@dataclass(frozen=True)
class TrainingConfig:
    """Length, pace and seed of a training."""

    epochs: int = 200
    """Passes over the training slices."""
    epoch_steps: int = 0
    """Most steps of an epoch, which is then a random part of the slices; 0 = all slices once. With
    many images, the rate is held and validation done more often."""
    max_minutes: float = 0.0
    """Stop by the clock after this many minutes; 0 = never. Where the clock is ahead of the epochs,
    the learning rate follows it, and a repeat can differ."""
    batch_size: int = 16
    """Slices per step, over all processes and pieces."""
    learning_rate: float = 4e-3
    """Largest learning rate of encoder, decoder and term (Adam)."""
    kernel_learning_rate: float = 1e-3
    """The same of the kernel network, which has an optimiser of its own."""
    lr_warmup_steps: int = 100
    """Steps of linear growth before the cosine decay to zero."""
    rate_warmup_steps: int = 300
    """Steps over which the weight of the rate grows from 0 to β: levels find their use first."""
    gradient_clip: float = 1.0
    """Largest gradient norm, of the objective in nats per pixel value; 0 = off."""
    ema_decay: float = 0.999
    """Decay per step of the averaged weights that evaluation uses."""
    beta: float = 1.0
    """Weight of the rate; 1 is the ELBO. With rate_target, where the controller starts."""
    rate_target: float | None = None
    """Rate in nats that the controller holds by moving β."""
    seed: int = 0
    """Of initial weights, order of slices, augmentation and noise."""
    threads: int = field(default=0, metadata={"decides": "nothing"})
    """Threads torch may use; 0 = its own choice."""
    device: str = field(default="auto", metadata={"decides": "nothing"})
    """auto (a GPU if there is one), cpu, cuda, cuda:1, …"""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: convolutions in bfloat16 where the device has it; likelihood and FFTs stay float32."""
    accumulation: int = 1
    """Pieces in which a process takes its share of a batch, to save memory; with an optimal scale
    a third slower."""
    compile: bool = field(default=False, metadata={"decides": "nothing"})
    """Let torch.compile compile the VAE; takes minutes at first."""
    cuda_graph: bool = field(default=True, metadata={"decides": "nothing"})
    """On one GPU without accumulation: launch forward and backward pass as one CUDA graph."""
    max_skipped: int = field(default=20, metadata={"decides": "nothing"})
    """Batches in a row that may be skipped because loss or gradient is not finite."""
    checkpoint_every: int = field(default=1, metadata={"decides": "nothing"})
    """Epochs between checkpoints."""
    checkpoint_minutes: float = field(default=15.0, metadata={"decides": "nothing"})
    """Minutes between checkpoints within an epoch; 0 = none."""
    keep_checkpoints: int = field(default=2, metadata={"decides": "nothing"})
    """Latest checkpoints that are kept, beside the best."""
    validate_every: int = 1
    """Epochs between validations; the last epoch is always validated."""
    figure_every: int = 1
    """Epochs between image grids and recorded kernels."""

    def __post_init__(self) -> None:
        require("training", self, "> 0", "learning_rate", "kernel_learning_rate", "beta")
        require("training", self, ">= 1", "epochs", "batch_size", "accumulation")
        require("training", self, ">= 1", "checkpoint_every", "keep_checkpoints")
        require("training", self, ">= 1", "validate_every", "figure_every")
        require(
            "training", self, ">= 0", "max_minutes", "epoch_steps", "checkpoint_minutes", "seed"
        )
        require("training", self, ">= 0", "lr_warmup_steps", "rate_warmup_steps", "gradient_clip")
        require("training", self, ">= 0", "threads", "max_skipped", "seed")
        require("training", self, ">= 0, < 1", "ema_decay")
        if self.rate_target is not None:
            require("training", self, "> 0", "rate_target")


@dataclass(frozen=True)
class EvaluationConfig:
    """The subjects that are scored, and the scores."""

    store: str = field(default="", metadata={"where": True})
    """Another prepared store, by name or path: external validation."""
    other_people: bool = field(default=False, metadata={"decides": "nothing"})
    """The subjects of `store` are other people than those of the training, whatever their names:
    equal subject and family names are no reason to refuse them, the same file still is."""
    split: Literal["test", "validation", "all"] = "test"
    """Whose slices are scored."""
    checkpoint: Literal["best", "last"] = "best"
    """best: by PSNR on validation subjects."""
    device: str = field(default="auto", metadata={"decides": "nothing"})
    """auto (a GPU if there is one), cpu, cuda, cuda:1, …, whatever the run was trained on."""
    threads: int = field(default=0, metadata={"decides": "nothing"})
    """Threads torch may use; 0 = training.threads."""
    batch_size: int = 64
    """Slices that are scored at once."""
    max_slices: int = 0
    """Most slices scored per subject, evenly thinned; 0 = all."""
    samples: int = 256
    """Draws from the prior that are scored."""
    lpips_alex_weights: str = field(default="", metadata={"where": True})
    """AlexNet weights for LPIPS (torchvision's state dict); "" = look in the usual places."""
    lpips_vgg_weights: str = field(default="", metadata={"where": True})
    """VGG16 weights for LPIPS, KID and the Fréchet distance (torchvision's state dict); "" = look
    in the usual places."""
    inception_weights: str = field(default="", metadata={"where": True})
    """InceptionV3 weights for FID (weights-inception-2015-12-05-6726825d.pth, or the folder it lies
    in); "" = look in torch's hub cache."""
    download: bool = field(default=False, metadata={"where": True})
    """Download backbones (LPIPS, FID) where there are none."""
    seed: int = 0
    """Of posterior draws, samples and random subsets."""

    def __post_init__(self) -> None:
        if self.other_people and not self.store:
            raise ValueError("evaluation.other_people is for another store: set evaluation.store")
        require("evaluation", self, ">= 1", "batch_size", "samples")
        require("evaluation", self, ">= 0", "max_slices", "threads")


@dataclass(frozen=True)
class ForeignOptions:
    """Reconstructions of another program, for `evaluate --reconstructions`.

    Args:
        reconstructions: a folder with `originals` and `reconstructions`, in which files of one name
            belong together, a subject each; or a torch.export program (.pt2), images (B,C,H,W) in
            [0,1] to the same shape. A program can run code: use one that you trust.
        store: a prepared store, whose images the program is given.
        split: subjects of the store: test, validation, or all.
        max_slices: most slices scored per subject, evenly thinned; 0 = all.
        lpips_alex_weights: AlexNet weights for LPIPS; where empty in the usual places.
        lpips_vgg_weights: VGG16 weights for LPIPS, KID and the Fréchet distance; the same.
        download: fetch them where there are none.
        output: folder of the results; WORK/scores/NAME where empty.
    """

    reconstructions: str
    store: str = ""
    split: Literal["test", "validation", "all"] = "test"
    max_slices: int = 0
    lpips_alex_weights: str = ""
    lpips_vgg_weights: str = ""
    download: bool = False
    output: str = ""

    def __post_init__(self) -> None:
        _ = self.settings  # checks the values
        if not Path(self.reconstructions).exists():
            raise ValueError(f"--reconstructions: {self.reconstructions} is not there")
        if self.store:
            Store.open(find_folder(self.store, "stores"))

    @property
    def settings(self) -> EvaluationConfig:
        """The settings that decide a score, as in the evaluation of a run."""
        given = asdict(self)
        shared = given.keys() & asdict(EvaluationConfig()).keys() - {"store"}
        return EvaluationConfig(**{name: given[name] for name in shared})


@dataclass(frozen=True)
class CompareConfig:
    """The reconstruction terms that are compared, and their runs."""

    terms: tuple[str, ...] = ()
    """Names of terms, `blur:positive_definite` for the blur term in that form; [] = all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Values of training.seed: a run each for every term and rate."""
    rate_targets: tuple[float, ...] = ()
    """Rates in nats that all terms are held at, 0 for none: β stays training.beta; [] =
    training.rate_target alone."""
    jobs: int = 0
    """Runs at once, sharing the cores; 0 = a run a core, on a GPU one."""
    quick: bool = False
    """One seed and 200 steps: a trial run, whose scores mean little."""

    def __post_init__(self) -> None:
        require("compare", self, ">= 0", "jobs")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"compare.seeds must hold numbers from 0 on, not {list(self.seeds)}")
        if any(not rate >= 0 for rate in self.rate_targets):
            raise ValueError(f"compare.rate_targets must be >= 0, not {list(self.rate_targets)}")


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on.

    Example:
        >>> Config().training.batch_size
        16
    """

    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.likelihood.kernel_size > self.prepare.size:
            raise ValueError(
                f"likelihood.kernel_size {self.likelihood.kernel_size} is larger than "
                f"prepare.size {self.prepare.size}"
            )


def config_parser(start: str, about: str, example: str, shown: Sequence[str] = ("",)) -> Parser:
    """A parser of --config, --run, --restart and every key of the configuration.

    All commands accept all keys, so that one file and one set of overrides serves them all; help
    tells those that begin with one of `shown`.
    """
    parser = command_parser(start, about, example, shown)
    parser.add_argument("--config", action=ConfigFile, help="YAML file of the configuration")
    parser.add_argument(
        "--run", type=str, default="", help="name of the run; the config's by default"
    )
    parser.add_argument(
        "--restart", type=bool, default=False, help="train anew what was trained before"
    )
    parser.add_class_arguments(Config)
    return parser


def load_config(path: str | Path, *overrides: str) -> Config:
    """A configuration from a YAML file.

    Args:
        path: of the YAML file.
        overrides: as on the command line.

    Raises:
        InputError: with the file or key, in one line.

    Example:
        >>> load_config("configs/demo.yaml", "--training.epochs=5").training.epochs
        5
    """
    parser = config_parser("", "", "")
    return parser.made(Config, parser.read(["--config", str(path), *overrides]))
