"""What real files do to the real command line: each becomes an input, and the command says what.

As a program it prints the table, a row per situation:

    python tests/data_prep/test_real_folders_slow.py [only these rows …]
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from adult_heads import affine, head, real, save
from scipy.spatial.transform import Rotation

ROOT = Path(__file__).parents[2]
REAL = real()
BRAIN = head() if REAL is None else REAL
# OASIS at every second voxel, or the ellipsoid.
SIDE = 4.0 if REAL is None else 2.0


@dataclass(frozen=True)
class Situation:
    """make: writes the files of one subject, `a`, into a folder. code: the command's; says: words
    of what it prints, all of them. options: of the command. template: where the image is."""

    row: str
    make: Callable[[Path], object]
    code: int
    says: tuple[str, ...]
    options: tuple[str, ...] = ()
    template: str = "{subject}.nii.gz"


def placed(factor: float = 1.0) -> np.ndarray:
    place = affine(SIDE)
    place[:3] *= factor
    return place


def turned(degrees: float) -> np.ndarray:
    place = placed()
    place[:3, :3] = (
        Rotation.from_rotvec(np.radians(degrees) * np.array([0, 0, 1])).as_matrix() @ place[:3, :3]
    )
    return place


def sheared(degrees: float) -> np.ndarray:
    place = placed()
    place[0, 1] = SIDE * np.tan(np.radians(degrees))
    return place


def image(data: np.ndarray = BRAIN, name: str = "a.nii.gz", **keys: object) -> Callable[..., Path]:
    """Writes `data` where it should lie, unless `place` says otherwise."""
    place = keys.pop("place", None)
    place = placed() if place is None else place
    return lambda folder: save(folder / name, data, place, **keys)  # type: ignore[arg-type]


def with_mask(mask: np.ndarray, data: np.ndarray = BRAIN) -> Callable[[Path], object]:
    return lambda folder: (image(data)(folder), image(mask, "masks/a.nii.gz")(folder))


def standardised() -> np.ndarray:
    inside = BRAIN[BRAIN > 0]
    return np.where(BRAIN > 0, (BRAIN - inside.mean()) / inside.std(), 0).astype(np.float32)


def probability() -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return np.clip(gaussian_filter((BRAIN > 0).astype(np.float32), 2), 0, 1)


def noisy() -> np.ndarray:
    noise = np.random.default_rng(0).uniform(1, 30, BRAIN.shape).astype(np.float32)
    return np.where(BRAIN > 0, BRAIN, noise)


LAS = ("--prepare.assume_orientation", "LAS")
MASKED = ("--prepare.mask_template", "masks/{subject}.nii.gz")
STRICT = ("--prepare.plausibility.action", "quarantine")

SITUATIONS = (
    Situation("a sound file", image(), 0, ("quarantined: 0",)),
    Situation("1 metres, declared", image(place=placed(0.001), unit="m"), 0, ("in metre",)),
    Situation("1 micrometres, declared", image(place=placed(1000), unit="um"), 0, ("in micron",)),
    Situation("1 no unit", image(unit=None), 0, ("quarantined: 0",)),
    Situation("1 metres, not declared", image(place=placed(0.001), unit=None), 2, ("xyzt_units",)),
    Situation("1 mm, declared as metres", image(unit="m"), 2, ("metre", "xyzt_units")),
    Situation("1 a tenth of the size", image(place=placed(0.1)), 2, ("too_small", "mm long")),
    Situation("1 a mask where nothing is",
              with_mask((BRAIN == 0).astype(np.uint8)), 2, ("no_contrast",), MASKED),
    Situation("2 both codes 0", image(forms=(0, 0)), 2, ("left and right are unknown",)),
    Situation("2 both codes 0, LAS", image(forms=(0, 0)), 0, ("LAS is assumed",), LAS),
    Situation("2 qform code 0", image(forms=(1, 0)), 0, ("quarantined: 0",)),
    Situation("2 sform code 0", image(forms=(0, 1)), 0, ("quarantined: 0",)),
    Situation("11 offset 1000", image(BRAIN + 1000), 0, ("background is 1000",)),
    Situation("11 offset -1", image(BRAIN - 1), 0, ("background is -1",)),
    Situation("11 standardised in the brain", image(standardised()), 0, ("standardised?",)),
    Situation("11 noise around it", image(noisy()), 0, ("prepare.mask_template",)),
    Situation("11 noise, strict", image(noisy()), 2, ("implausible",), STRICT),
    Situation("12 probabilities", with_mask(probability()), 0, ("brain is from 0.5 on",), MASKED),
    Situation("12 per cent", with_mask((probability() * 100).astype(np.int16)), 0,
              ("set it to 50",), MASKED),
    Situation("12 mask of 0 and 255", with_mask((BRAIN > 0).astype(np.uint8) * 255), 0,
              ("quarantined: 0",), MASKED),
    Situation("18 NIfTI pair", image(name="a.img", kind=nib.Nifti1Pair), 0, ("quarantined: 0",),
              template="{subject}.hdr"),
    Situation("18 Analyze", image(name="a.img", kind=nib.AnalyzeImage), 2,
              ("left and right are unknown",), template="{subject}.img"),
    Situation("18 Analyze, LAS", image(name="a.img", kind=nib.AnalyzeImage), 0,
              ("LAS is assumed",), LAS, "{subject}.img"),
    Situation("18 Analyze of the other byte order, LAS",
              image(name="a.img", kind=nib.AnalyzeImage, big_endian=True, dtype=">i2"), 0,
              ("LAS is assumed",), LAS, "{subject}.hdr"),
    Situation("20 .NII.GZ", image(name="A.NII.GZ"), 0, ("quarantined: 0",),
              template="{subject}.NII.GZ"),
    Situation("20 .Nii", image(name="a.Nii"), 0, ("quarantined: 0",), template="{subject}.Nii"),
    Situation("oblique by 40°", image(place=turned(40)), 0, ("tilt of the axes 40°",)),
    Situation("oblique by 3°", image(place=turned(3)), 0, ("quarantined: 0",)),
    Situation("sheared by 10°", image(place=sheared(10), forms=(1, 0)), 0, ("shear of the axes",)),
)  # fmt: skip


def run(situation: Situation, folder: Path) -> tuple[int, str]:
    """The exit code of the real command on a situation, and all that it printed."""
    situation.make(folder / "raw")
    command = [
        sys.executable, "-m", "data_prep", "--prepare.name", "study", "--prepare.source", "hcp",
        "--prepare.root", str(folder / "raw"), "--prepare.template", situation.template,
        "--prepare.track", "false", "--prepare.workers", "1", *situation.options,
    ]  # fmt: skip
    environment = os.environ | {"WORK": str(folder / "work"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.row)
def test_the_command_says_what_is_the_matter(situation: Situation, tmp_path: Path) -> None:
    code, told = run(situation, tmp_path)
    assert code == situation.code, told
    for words in situation.says:
        assert words in told
    if words == "quarantined: 0":
        assert "flagged" not in told
    assert "Traceback" not in told
    assert (tmp_path / "work/stores/study/manifest.json").exists() == (code == 0)


def main(only: list[str]) -> None:
    """Print the table: the row, what the command said of it, its exit code."""
    print("| row | what the command said | exit code |\n|---|---|---|")
    for situation in SITUATIONS:
        if only and not any(situation.row.startswith(word) for word in only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            code, told = run(situation, Path(folder))
        lines = [
            line.strip().replace(folder, "")
            for line in told.splitlines()
            if line.startswith(("error:", "  a: ", "  A: ", "quarantined: "))
        ]
        print(f"| {situation.row} | {' / '.join(lines)} | {code} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
