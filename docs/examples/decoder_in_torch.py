"""A decoder in somebody else's torch code: fill in what a mask hides. Needs torch and numpy alone.

python docs/examples/decoder_in_torch.py work/packages/demo work/stores/demo filled.png

The store is only where an image comes from (a .npy file); nothing of this project is imported.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch


def fill(decoder: torch.nn.Module, latent_size: int, image: torch.Tensor, seen: torch.Tensor):
    """The image (1,1,H,W) whose latent explains the seen pixels best: ½|error/0.05|² + ½|z|²."""
    latent = torch.zeros(1, latent_size, requires_grad=True)
    optimiser = torch.optim.Adam([latent], lr=0.05)
    for _ in range(300):
        error = (decoder(latent) - image) * seen
        loss = (error / 0.05).square().sum() / 2 + latent.square().sum() / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return torch.where(seen, image, decoder(latent))


def main(package: str, store: str, picture: str = "") -> tuple[float, float]:
    """Returns the mean square error in the hidden square: of leaving it empty, of filling it."""
    facts = json.loads(Path(package, "metadata.json").read_text())
    decoder = torch.export.load(Path(package, "decoder.pt2")).module()
    subjects = json.loads(Path(store, "manifest.json").read_text())["subjects"]
    shard = next(entry["shard"] for entry in subjects if entry["split"] == "test")
    slices = np.load(Path(store, shard))  # uint16, intensity x 65535
    image = torch.from_numpy(slices[len(slices) // 2] / np.float32(65535))[None]
    height, width = image.shape[-2:]
    seen = torch.ones_like(image, dtype=torch.bool)
    seen[..., height // 3 : height // 2, width // 3 : width // 2] = False
    filled = fill(decoder, facts["latent_size"], image, seen)
    empty, error = image[~seen].square().mean().item(), (filled - image)[~seen].square().mean()
    print(f"in the hidden square: {empty:.4f} left empty, {error:.4f} filled in")
    if picture:
        from matplotlib.figure import Figure

        shown = {"seen": image * seen, "filled in": filled, "original": image}
        figure = Figure(figsize=(7.5, 2.8), layout="constrained")
        for axis, (name, values) in zip(figure.subplots(1, 3), shown.items(), strict=True):
            axis.imshow(values[0, 0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=name)
        figure.savefig(picture, dpi=150)
    return empty, error.item()


if __name__ == "__main__":
    main(*sys.argv[1:])
