"""Restore slices of a known degradation under a decoder's prior: denoise, deblur, super-resolve.

python -m pipeline restore --package DIR --store STORE --noise 0.1    people of a store, scored
python -m pipeline restore --package DIR --image x.nii.gz --factor 2  a degraded slice
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.analysis.geometry import finer_affine, read_picture, write_picture
from pipeline.analysis.inverse import SolverSettings
from pipeline.analysis.operators import (
    Composed,
    Downsampling,
    GaussianBlur,
    Operator,
    complex_noise,
)
from pipeline.analysis.reconstruct import check_numbers, intensity_unit
from pipeline.analysis.results import begin
from pipeline.analysis.study import (
    IMAGE,
    TV,
    WAVELETS,
    Choice,
    Problem,
    Simulation,
    describe,
    files_of,
    open_prior,
    options_record,
    package_record,
    people,
    run_simulation,
    solve_case,
    write_figure,
    write_scores,
)
from pipeline.data.slices import open_store
from pipeline.errors import InputError
from pipeline.files import work_folder
from pipeline.progress import Reporter

DEGRADED = "degraded"
USUAL_WEIGHT = 0.01


@dataclass(frozen=True)
class Options:
    """What is restored, from which degradation, with which decoder."""

    package: str = ""
    """Decoder package: a folder, a name under WORK/packages, or an address in MLflow."""
    store: str = ""
    """A prepared store, whose slices are degraded here and scored."""
    split: Literal["validation", "test", "all"] = "test"
    """Whose slices of the store."""
    subject: str = ""
    """One subject of the store in place of a split."""
    slices: int = 4
    """Slices a person, evenly spaced about the middle; 0 = all."""
    image: str = ""
    """A NIfTI file of one slice that is degraded already."""
    blur: float = 0.0
    """Standard deviation of the Gaussian blur, pixels of the restored image; 0 = none."""
    factor: int = 1
    """How many pixels of the restored image one of the degraded spans, along each side."""
    noise: float = 0.1
    """Standard deviation of the noise, in intensities of [0,1]."""
    scale: float = 0.0
    """Of --image: what is intensity 1; 0 = the 99.5th percentile within the head."""
    tv_weight: float | None = None
    """Weight of total variation; null = the best SSIM on validation people (0.01 without)."""
    wavelet_weight: float | None = None
    """Weight of the wavelets' details, likewise."""
    latent_steps: int = 80
    """Steps of the latent phase, for each restart."""
    image_steps: int = 60
    """Steps of the image phase."""
    restarts: int = 1
    """Starts of the latent phase: the encoder of the degraded image, then draws from the prior."""
    samples: int = 8
    """Draws from the posterior, for a standard deviation of each pixel; 0 = none."""
    law: Choice = "best"
    """The law of the decoder's residuals: fitted, term, or best: fitted where there is one."""
    support: bool = False
    """Keep the image to where the decoder draws tissue."""
    seed: int = 0
    """Of noise and restarts."""
    output: str = ""
    """Folder of the results; "" = WORK/restorations."""

    def __post_init__(self) -> None:
        if not self.package:
            raise ValueError(
                "say which decoder to use: --package DIR (make export RUN=… writes one)"
            )
        if bool(self.store) == bool(self.image):
            raise ValueError("give one of --store and --image")
        if not 0 <= self.blur < float("inf"):
            raise ValueError(f"blur must not be negative, not {self.blur}")
        check_numbers(
            noise=self.noise,
            scale=self.scale,
            tv_weight=self.tv_weight or 0.0,
            wavelet_weight=self.wavelet_weight or 0.0,
            slices=self.slices,
            seed=self.seed,
            latent_steps=self.latent_steps,
            image_steps=self.image_steps,
            restarts=self.restarts - 1,
            samples=self.samples,
        )
        if self.samples == 1:
            raise ValueError("one draw has no standard deviation: give samples 0, or at least 2")

    @property
    def weights(self) -> dict[str, float | None]:
        """Of the methods without a decoder."""
        return {TV: self.tv_weight, WAVELETS: self.wavelet_weight}

    @property
    def solver(self) -> SolverSettings:
        """The settings of the search."""
        return SolverSettings(
            latent_steps=self.latent_steps,
            image_steps=self.image_steps,
            restarts=self.restarts,
            support=self.support,
            seed=self.seed,
            samples=self.samples,
        )


def degradation(blur: float, factor: int, shape: tuple[int, int]) -> Operator:
    """Blur, then pixels `factor` times larger. Raises InputError where the factor does not fit."""
    try:
        return Composed(GaussianBlur(blur, shape), Downsampling(factor, shape))
    except ValueError as error:
        raise InputError(str(error)) from error


def run(options: Options) -> None:
    """The command. Raises InputError, in one line, where the inputs do not fit each other."""
    package = open_prior(options.package, options.law)
    output = Path(options.output or work_folder() / "restorations")
    height, width = package.image_shape[1:]
    operator = degradation(options.blur, options.factor, (height, width))
    record: dict[str, Any] = {"decoder": package_record(package, options.package),
              "options": options_record(options)}  # fmt: skip
    if options.store:
        store = open_store(options.store, work_folder())
        entries = people(store, package, options.split, options.subject)
        study = Simulation(
            store, entries, package, lambda x, number: degraded(x, number, operator, options),
            DEGRADED, options.slices, options.weights, options.solver,
        )  # fmt: skip
        begin(output, files_of(entries))
        cases, weights = run_simulation(study, output)
        name = f"store {store.name}" + (" (simulated people)" if store.simulated else "")
    else:
        if package.image_shape[0] != 1:
            raise InputError(f"the decoder draws {package.image_shape[0]} channels, a NIfTI slice "
                             "has one")  # fmt: skip
        coarse = package.spacing_mm * options.factor
        picture = read_picture(Path(options.image), package.orientation, coarse)
        wanted = (height // options.factor, width // options.factor)
        if picture.image.shape != wanted:
            raise InputError(
                f"{options.image} is {picture.image.shape[0]}x{picture.image.shape[1]} pixels, and "
                f"with factor {options.factor} must be {wanted[0]}x{wanted[1]}: crop or pad it"
            )
        unit = intensity_unit(picture.image, options.scale)
        measured = torch.from_numpy(picture.image / unit).float()[None, None]
        problem = Problem(operator, measured, options.noise, _enlarged(measured, (height, width)))
        weights = {
            method: USUAL_WEIGHT if given is None else given
            for method, given in options.weights.items()
        }
        begin(output, files_of())
        with Reporter() as reporter:
            case = solve_case(
                "slice", problem, DEGRADED, package, weights, options.solver,
                lambda part: reporter.update(part, "restoration"),
            )  # fmt: skip
        cases, name = [case], Path(options.image).name
        values = case.images[IMAGE][0, 0].double().numpy() * unit
        affine = finer_affine(picture.affine, options.factor)
        write_picture(output / "reconstruction.nii.gz", values, affine, picture)
        if case.deviation is not None:
            values = case.deviation[0, 0].double().numpy() * unit
            write_picture(output / "deviation.nii.gz", values, affine, picture)
        record["scale"] = unit
    methods = write_scores(output, cases, {**record, "weights": weights})
    from pipeline.analysis.analysis_figures import comparison  # matplotlib takes a second

    write_figure(output / "comparison.png", comparison(cases, f"Restorations of {name}"))
    if methods:
        print(describe(methods, cases))
    print(f"images, scores, figure: {output}")


def degraded(image: Tensor, number: int, operator: Operator, options: Options) -> Problem:
    """Images (B,C,H,W) in [0,1] degraded; number: the person's, which decides the noise."""
    clean = operator.forward(image)
    generator = torch.Generator().manual_seed(2 * abs(number) + (number < 0) + 1000 * options.seed)
    measured = clean + complex_noise(clean, options.noise, generator)
    simple = _enlarged(measured, (image.shape[-2], image.shape[-1]))
    return Problem(operator, measured, options.noise, simple, image)


def _enlarged(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Bicubic interpolation to (H,W): what is had without a prior."""
    if image.shape[-2:] == shape:
        return image
    return torch.nn.functional.interpolate(image, shape, mode="bicubic", align_corners=False)
