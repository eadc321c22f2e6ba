"""Prepared slices in a MONAI training of somebody else's: from NIfTI files, or from a store.

python docs/examples/monai_training.py /data/HCP_1200/*/T1w/T1w_acpc_dc_restore_brain.nii.gz
python docs/examples/monai_training.py work/stores/demo
"""

import sys
from pathlib import Path

import torch
from monai.data import CacheDataset, DataLoader, Dataset, list_data_collate
from monai.networks.nets import AutoEncoder
from monai.transforms import Compose, Orientationd, RandFlipd

from data_prep import Store
from data_prep.volume.transforms import (
    RAS,
    BrainMaskd,
    ExtractSlicesd,
    LoadVerifiedd,
    ScaleWithinMaskd,
)


def from_files(paths: list[str]) -> Dataset:
    """Slices of 64 x 64 pixels of 3.2 mm, {"image": (1, 64, 64)}, and the chain to change."""
    chain = Compose(
        [
            LoadVerifiedd("image"),
            BrainMaskd("image", "mask"),
            Orientationd(["image", "mask"], axcodes="RAS", labels=RAS),
            ScaleWithinMaskd("image", "mask", lower=0.5, upper=99.5),
            ExtractSlicesd("image", "mask", size=64, spacing_mm=3.2),
        ]
    )
    volumes = CacheDataset([{"image": path} for path in paths], chain, progress=False)
    return Dataset([{"image": image} for volume in volumes for image in volume["image"]])


def from_store(path: str) -> Dataset:
    """The training slices of a prepared store."""
    store = Store.open(path)
    slices = [image for entry in store.subjects("train") for image in store.images(entry)]
    return Dataset([{"image": torch.from_numpy(image)} for image in slices])


def train(data: Dataset, steps: int = 20) -> list[float]:
    """The losses of a few steps of MONAI's AutoEncoder."""
    network = AutoEncoder(2, 1, 1, channels=(8, 16), strides=(2, 2))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    flipped = Dataset(data, RandFlipd("image", prob=0.5, spatial_axis=1))
    loader = DataLoader(flipped, batch_size=16, shuffle=True, collate_fn=list_data_collate)
    losses: list[float] = []
    while len(losses) < steps:
        for batch in loader:
            loss = torch.nn.functional.mse_loss(network(batch["image"]), batch["image"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return losses[:steps]


def main(paths: list[str]) -> list[float]:
    """Prints and returns the losses."""
    data = from_store(paths[0]) if Path(paths[0]).is_dir() else from_files(paths)
    losses = train(data)
    print(f"{len(data)} slices, loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main(sys.argv[1:])
