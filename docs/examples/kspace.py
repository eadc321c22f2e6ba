"""An image from a quarter of its k-space: y = F x + noise, x under the decoder's prior.

python docs/examples/kspace.py demo demo kspace.png    # package, store; after make export RUN=demo
"""

import sys

import torch
from matplotlib.figure import Figure

import pipeline
from data_prep.common.files import work_folder

NOISE = 0.01


def main(package: str, store: str, picture: str = "", steps: int = 100) -> dict[str, float]:
    """Prints and returns PSNR in dB of zero filling, of the decoder's image, of both together."""
    prior = pipeline.open_package(package)
    opened = pipeline.open_store(store, work_folder())
    image = pipeline.SliceDataset(opened, opened.subjects("test")).of_subject(0, 3)[1:2]

    # The scanner: a quarter of the columns of k-space, denser in the centre, with noise.
    shape = (image.shape[-2], image.shape[-1])
    scanner = pipeline.MaskedFourier(pipeline.cartesian_mask(shape, acceleration=4))
    clean = scanner.forward(image)
    noise = torch.randn(clean.shape, dtype=clean.dtype) * NOISE * 2**0.5  # NOISE in each part
    measured = scanner.mask * (clean + noise)
    start = scanner.adjoint(measured)

    settings = pipeline.SolverSettings(latent_steps=steps, image_steps=steps)
    solved = pipeline.solve(prior, scanner, measured, NOISE, start, settings)
    shown = {
        "original": image,
        "zero filling": start.clamp(0, 1),
        "decoder alone": solved.drawn,
        "decoder and data": solved.image,
    }
    scores = {name: pipeline.psnr(image, x).item() for name, x in list(shown.items())[1:]}
    print(", ".join(f"{name}: {score:.2f} dB" for name, score in scores.items()))
    if picture:
        figure = Figure(figsize=(9.5, 2.8), layout="constrained")
        axes = figure.subplots(1, len(shown))
        for axis, (name, x) in zip(axes, shown.items(), strict=True):
            axis.imshow(x[0, 0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=name)
        figure.savefig(picture, dpi=150)
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:])
