"""What the analyses share: their options, decoders and subjects, and the folders of their results.

Nothing here imports torch before a decoder is opened: options and paths that are wrong are told at
once.
"""

import contextlib
import glob
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_prep import Store, SubjectEntry
from data_prep.common.files import sha256_of
from data_prep.common.wording import command
from pipeline.errors import InputError
from pipeline.files import (
    existing_package,
    find_folder,
    is_address,
    locked,
    work_folder,
    writable,
    write_json,
)

if TYPE_CHECKING:
    from pipeline.package.package import DecoderPackage

Tail = Literal["both", "dark", "bright"]
QUESTION = "question.json"
# Options that name inputs, or places: a folder is not called after them.
UNNAMED = ("package", "store", "image", "kspace", "like", "other_people", "output", "device")
# Options that name files which must be there.
FILES = ("image", "kspace", "like", "sensitivities", "mask", "lesions")
LONGEST = 120


# Options


@dataclass(frozen=True)
class PackageOptions:
    """A decoder, and a place for what it is used for. InputError for what is not there."""

    package: str = ""
    """Decoder package: a folder, a name under WORK/packages, or an address in MLflow."""
    law: Literal["best", "fitted", "term"] = "best"
    """The law of the decoder's residuals: fitted, term, or best: fitted where there is one."""
    output: str = ""
    """Folder of the results; "" = one under WORK, named by what decides them."""

    def __post_init__(self) -> None:
        if not self.package:
            export = command("export", run="…")
            raise ValueError(f"no decoder given: use --package DIR ({export} writes one)")
        for name, value in vars(self).items():
            least = 1 if name in ("coils", "factor", "repeats") else 0
            if isinstance(value, int | float) and not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} must be at least {least}, not {value}")
            if name in FILES and value and not Path(value).exists():
                raise InputError(f"--{name}: {value} is not there")
        for source in (self.package, getattr(self, "baseline", "")):
            if source and not is_address(source):
                existing_package(find_folder(source, "packages"))
        if store := getattr(self, "store", ""):
            Store.open(find_folder(store, "stores"))


@dataclass(frozen=True)
class StoreOptions(PackageOptions):
    """Subjects of a prepared store."""

    store: str = ""
    """A prepared store."""
    subjects: str = "test"
    """Its subjects: those of split test or validation, all, or one subject by name."""
    other_people: bool = False
    """The store's subjects are others than those trained on, whatever their names: the same file
    alone is refused."""
    slices: int = 4
    """Slices per subject, evenly spaced about the middle; 0 = all."""
    seed: int = 0
    """Of all that is drawn at random."""


@dataclass(frozen=True)
class ReconstructOptions(StoreOptions):
    """Images, how they are or were measured, and how they are searched for."""

    image: str = ""
    """A NIfTI file of one slice, in place of a store: undersampled here and scored, or with
    --operator image degraded already."""
    kspace: str = ""
    """A .npy file of measured k-space, complex (H,W) or (coils,H,W), centred, rows A>P."""
    like: str = ""
    """NIfTI file of one slice whose affine and axes the picture of --kspace has."""
    scale: float = 0.0
    """Of a single slice: the value that is intensity 1; 0 = the 99.5th percentile in the head."""
    operator: Literal["fourier", "image"] = "fourier"
    """fourier: undersampled k-space; image: blur, then coarser pixels. Noise is added to either."""
    acceleration: float = 4.0
    """All columns of k-space over those measured, 2 to 8."""
    kind: Literal["variable_density", "equispaced"] = "variable_density"
    """The columns: at random, denser in the centre, or equally spaced."""
    centre_fraction: float = 0.08
    """The share of columns about the lowest frequency that are all measured."""
    mask: str = ""
    """The samples, (H,W) of 0 and 1, .npy or NIfTI, in place of drawn columns; of --kspace "" is
    where it is not 0."""
    coils: int = 1
    """Coils that are simulated where no sensitivities are given."""
    sensitivities: str = ""
    """A .npy file of coil sensitivities, complex (coils,H,W), which several measured coils need."""
    phase: Literal["centre", "none"] = "centre"
    """The image's phase: from the fully sampled centre, or none."""
    simulated_phase: float = 0.0
    """The largest phase, radians, that the object of --store or --image gets, smoothly."""
    blur: float = 0.0
    """Of --operator image: standard deviation of the Gaussian, pixels of the restored image."""
    factor: int = 1
    """Of --operator image: pixels of the restored image that one measured spans, a side."""
    noise: float | None = None
    """Standard deviation of the noise, in intensities of [0,1]; null = 0.01 in real and imaginary
    part of k-space, 0.1 in an image."""
    tv_weight: float | None = None
    """Weight of total variation; null = the best SSIM on validation subjects, for a single slice
    the choice on OASIS."""
    wavelet_weight: float | None = None
    """Weight of the wavelets' details, chosen in the same way."""
    steps: int = 80
    """Steps of the latent phase; the image phase has three for four of these."""
    samples: int = 8
    """Draws from the posterior, for a standard deviation of each pixel; 0 = none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(map(bool, (self.store, self.image, self.kspace))) != 1:
            raise ValueError("give one of --store, --image and --kspace")
        if self.kspace and self.operator == "image":
            raise ValueError("--kspace is reconstructed with --operator fourier")
        if self.kspace and not self.like:
            raise ValueError(
                "k-space has no affine: give --like x.nii.gz, a slice of the same place"
            )
        if not 2 <= self.acceleration <= 8:
            raise ValueError(f"acceleration must lie between 2 and 8, not {self.acceleration:g}")
        if self.samples == 1:
            raise ValueError("one draw has no standard deviation: give samples 0, or at least 2")

    @property
    def deviation(self) -> float:
        """Of the noise, intensity."""
        default = 0.1 if self.operator == "image" else 0.01
        return default if self.noise is None else self.noise


@dataclass(frozen=True)
class MapOptions(PackageOptions):
    """Reconstructions that images are compared with."""

    baseline: str = ""
    """Another decoder package, as of a Gaussian VAE, whose |x − x̂| is scored, too."""
    finest: int = 0
    """Side of the finest level whose latents the reconstructions use; 0 = all. Finer levels draw a
    lesion as they draw anatomy."""


@dataclass(frozen=True)
class AnomalyOptions(MapOptions):
    """A volume, and how it is compared with what the decoder expects."""

    image: str = ""
    """The volume, .nii or .nii.gz, skull-stripped or with a mask."""
    mask: str = ""
    """Brain mask on the image's grid; "" = where the image is above 0."""
    assume_orientation: str = ""
    """Where the axes of a file run to whose header does not say (sform and qform codes 0, Analyze),
    such as RAS or LAS; "" = such a file is refused."""
    lesions: str = ""
    """Mask of lesions on the image's grid, to score the maps against."""
    tail: Tail = "both"
    """The deviations that count: both, only dark, or only bright ones."""
    restore_steps: int = 0
    """Steps of gradient ascent on the posterior, 100 or so; with them the map is what the
    restoration changed."""
    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.image:
            raise ValueError("no volume given: use --image volume.nii.gz")


@dataclass(frozen=True)
class LesionsOptions(StoreOptions, MapOptions):
    """Lesions that are put into a store's healthy slices, and how they are looked for."""

    slices: int = 8
    """Slices per subject, evenly spaced about the middle; 0 = all."""
    diameters: tuple[float, ...] = (3.0, 6.0, 9.0, 12.0)
    """Of the lesions, mm."""
    contrasts: tuple[float, ...] = (-0.4, -0.2, 0.2, 0.4)
    """Of the lesions, in intensities of [0,1]; negative ones are dark."""
    repeats: int = 2
    """Lesions of each kind in each slice, one at a time."""
    false_positives: float = 1.0
    """Pieces per healthy slice that the threshold of the sensitivity leaves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.store:
            raise ValueError("no subjects given: use --store STORE")
        if not self.false_positives > 0:
            raise ValueError(f"false_positives must be positive, not {self.false_positives}")
        if not self.diameters or not all(0 < d < math.inf for d in self.diameters):
            raise ValueError(f"diameters must be lengths in mm, not {self.diameters}")
        if not self.contrasts or not all(0 < abs(c) <= 1 for c in self.contrasts):
            raise ValueError(f"contrasts must lie in [-1,1] and not be 0: {self.contrasts}")


# Decoders, and the subjects they may be applied to


def open_decoders(options: PackageOptions, device: str = "cpu") -> "dict[str, DecoderPackage]":
    """The "package" of the options, under the Gaussian law that they name, and the "baseline".

    Raises InputError where there is no such package or law, for images of several channels, where
    no level is as coarse as `finest`, or the baseline's images were prepared in another way.
    """
    import torch

    from pipeline.data.volumes import differing
    from pipeline.losses.law import GaussianLaw
    from pipeline.package.format import open_package

    package = open_package(options.package, device)
    if options.law != "best":
        package.which = options.law
    if package.image_shape[0] != 1:
        raise InputError(f"the decoder draws {package.image_shape[0]} channels: MR images have one")
    if not isinstance(package.law(torch.zeros(1, package.latent_size, device=device)), GaussianLaw):
        raise InputError(
            f"the likelihood {package.term} is not Gaussian: use the fitted law (--law fitted), or "
            "a decoder of likelihood.term blur, gaussian or fourier_gaussian"
        )
    decoders = {"package": package}
    if not isinstance(options, MapOptions):
        return decoders
    if options.baseline:
        decoders["baseline"] = open_package(options.baseline, device)
    for decoder in decoders.values():
        if other := differing(package.prepare_keys, decoder.prepare_keys):
            raise InputError(f"the baseline's images were prepared with another {', '.join(other)}")
        try:
            latent = torch.zeros(1, decoder.latent_size, device=device)
            decoder.up_to(latent, options.finest or decoder.image_shape[-1])
        except ValueError as error:
            raise InputError(f"--finest {options.finest}: {error}") from error
    return decoders


def unseen_subjects(
    options: StoreOptions, *packages: "DecoderPackage"
) -> tuple[Store, list[SubjectEntry]]:
    """The store and the subjects that the options name, whom no package was trained on.

    Raises InputError where there is none, images have another shape than the decoders' or were
    prepared in another way, or a decoder was trained on a subject.
    """
    from pipeline.data.slices import FILES_CHECKED, WAY_OUT
    from pipeline.data.volumes import differing

    store = Store.open(find_folder(options.store, "stores"))
    wanted, others = options.subjects, options.other_people
    if wanted in ("test", "validation", "all"):
        entries = store.subjects(wanted)
    else:
        entries = [entry for entry in store.subjects("all") if entry.subject == wanted]
    if not entries:
        raise InputError(f"store {store.name} has no subject {wanted}, nor a split of that name")
    for package in packages:
        other = differing(store.manifest["configuration"], package.prepare_keys)
        if other or tuple(store.image_shape) != tuple(package.image_shape):
            raise InputError(
                f"store {store.name} was prepared with another {', '.join(other) or 'shape'} than "
                "the decoder's: prepare it as the decoder's was"
            )
        if others and store.digest == package.metadata["store"].get("digest"):
            raise InputError(
                f"--other_people: store {store.name} is the one that was trained on, so equal "
                "names are the same people"
            )
        keys = ("source_sha256",) if others else ("source_sha256", "subject", "family")
        seen = [
            e.subject for e in entries if package.trained_on(**{k: getattr(e, k) for k in keys})
        ]
        if seen:
            way_out = "" if others else WAY_OUT.format("--other_people true")
            raise InputError(
                f"{len(seen)} of {len(entries)} subjects were trained on by this decoder "
                f"({', '.join(seen[:5])}): score the split test, or a store of other "
                f"subjects{way_out}"
            )
    if others:
        print(f"--other_people: {FILES_CHECKED}")
    return store, entries


def caveats(
    package: "DecoderPackage", simulated: bool, entries: Sequence[SubjectEntry] = ()
) -> list[str]:
    """Notes beside results of images that the decoder is not made for.

    simulated: True of images of simulated people; entries: the subjects they are of.
    """
    from pipeline.metrics.statistics import few_calibrated

    notes = []
    if package.metadata["store"].get("simulated") and not simulated:
        notes.append("this decoder has seen simulated people only: on real ones it is not tested")
    fitted = package.metadata.get("fitted_on")
    if package.which != "fitted" or fitted is None:
        return notes
    keys = ("subject", "family", "source_sha256")
    known = sum(package.fitted_on(**{key: getattr(e, key) for key in keys}) for e in entries)
    if known:
        people = f"{known} of these {len(entries)} subjects"
        notes.append(f"in-sample: the law of residuals was fitted to {people}")
    return [*notes, *filter(None, [few_calibrated(fitted["families"])])]


def record(package: "DecoderPackage") -> dict[str, Any]:
    """The decoder's name and origin, for a results' JSON."""
    return {key: package.metadata.get(key) for key in ("name", "digest", "run", "store")}


# Folders of results


def image_name(path: Path) -> str:
    """A file's name without suffix, after its subject's folder where others have files so called.

    HCP's 100307/T1w/T1w_acpc_dc_restore_brain.nii.gz is 100307-T1w_acpc_dc_restore_brain. Folders
    are compared up to four levels above the file.
    """
    path = path.resolve()
    names = [re.sub(r"(\.nii|\.hdr|\.img|\.mgh|\.mgz|\.npy)?(\.gz)?$", "", path.name, flags=re.I)]
    for folder in list(path.parents)[:4]:
        pattern = f"*/{glob.escape(str(path.relative_to(folder)))}"
        if any(other.resolve() != path for other in folder.parent.glob(pattern)):
            names.insert(0, folder.name)
    return "-".join(names)


def named_folder(options: PackageOptions, kind: str, target: str, *always: str) -> Path:
    """WORK/kind/target/PACKAGE-OPTIONS: the options in `always`, and others than their defaults."""
    words = [Path(options.package).name]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in UNNAMED or (value == field.default and field.name not in always):
            continue
        values = value if isinstance(value, tuple | list) else [value]
        shown = [f"{v:g}" if isinstance(v, float) else Path(str(v)).name for v in values]
        words.append(field.name if value is True else f"{field.name}-{','.join(shown)}")
    name, target = (re.sub(r"[^\w.,+-]", "-", word) for word in ("-".join(words), target))
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return work_folder() / kind / target / name


@contextlib.contextmanager
def results(
    options: PackageOptions,
    folder: Path,
    decoders: "Iterable[DecoderPackage]",
    last: str,
    store: str = "",
) -> Iterator[Path | None]:
    """A folder for results, for one process at a time; None where they are there, which is said.

    It holds what an interrupted run of the same question has finished: a question is the options
    and the digests of decoders, store and files. Results of another question are never replaced:
    the folder then gets a digest. folder: where the options name none; last: the result that is
    written last; store: its digest. Raises InputError where options.output holds something else,
    or another process is at work there.
    """
    kept = {key: value for key, value in asdict(options).items() if key not in ("output", "device")}
    files = {name: sha256_of(Path(kept[name])) for name in FILES if kept.get(name)}
    digests = [decoder.metadata["digest"] for decoder in decoders]
    question = {"options": kept, "decoders": digests, "store": store, "files": files}
    question = json.loads(json.dumps(question))
    folder = Path(options.output) if options.output else folder

    def has_others() -> bool:
        if (folder / QUESTION).is_file():
            return json.loads((folder / QUESTION).read_text("utf-8")) != question
        return folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir())

    if has_others() and not options.output:
        digest = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:8]
        folder = folder.with_name(f"{folder.name}-{digest}")
    if has_others():
        raise InputError(f"{folder} holds other things: give --output a new folder")
    if (folder / last).exists():
        print(f"nothing has changed since these results were made: {folder}")
        yield None
        return
    writable(folder)
    lock = folder / ".lock"
    with locked(lock, busy=f"another process is at work on {folder}: wait for it to end"):
        write_json(folder / QUESTION, question)
        yield folder
        lock.unlink()
