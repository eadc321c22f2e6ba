"""Train the same network under the Gaussian and under the blur term, and look at both.

python docs/examples/train_and_look.py [epochs]    # after: make prepare

Trains on the demo's store (simulated people) for a minute or two a term, and writes
WORK/train_and_look.png: people of the test, who were not trained on, under both.
"""

import sys

import torch
from matplotlib.figure import Figure

import pipeline
from data_prep.common.files import work_folder
from pipeline.__main__ import main as command


def train(config: str, term: str, *more: str) -> pipeline.DecoderPackage:
    """The decoder package of a training under a term, the weight of the rate 1."""
    run = f"look-{term}"
    keys = [f"--likelihood.term={term}", "--training.max_minutes=0", *more]
    assert command(["train", "--config", config, "--run", run, *keys]) == 0
    assert command(["export", "--run", run, "--register", "false"]) == 0
    return pipeline.open_package(run)


def look(images: torch.Tensor, packages: dict[str, pipeline.DecoderPackage]) -> dict[str, float]:
    """Draw originals and reconstructions, a row each. Returns PSNR in dB by the term's name."""
    rows, scores = {"original": images}, {}
    with torch.no_grad():
        for name, package in packages.items():
            rows[name] = package.decode(package.encode(images).mean)
            scores[name] = pipeline.psnr(images, rows[name]).mean().item()
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots(len(rows), len(images), subplot_kw={"xticks": [], "yticks": []})
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axis, image in zip(line, row, strict=True):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.text(0, image.shape[1] / 2, "L", color="orange")  # the subject's left
    figure.savefig(work_folder() / "train_and_look.png", dpi=150)
    return scores


def main(config: str, store: str, *more: str) -> dict[str, float]:
    """Prints and returns PSNR of people of the test."""
    opened = pipeline.open_store(store, work_folder())
    data = pipeline.SliceDataset(opened, opened.subjects("test"))
    images = torch.cat([data.of_subject(n, 3)[1:2] for n in range(min(5, len(data.subjects)))])
    more = (f"--data.store={store}", *more)
    scores = look(images, {term: train(config, term, *more) for term in ("gaussian", "blur")})
    print(", ".join(f"{name}: {score:.2f} dB" for name, score in scores.items()))
    return scores


if __name__ == "__main__":
    epochs = sys.argv[1] if len(sys.argv) > 1 else "12"
    main("configs/demo.yaml", "demo", f"--training.epochs={epochs}")
