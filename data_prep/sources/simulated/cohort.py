"""The embedded cohort: simulated people, written as files in the HCP layout.

From there on they are read as real data is, by `sources/path_template.py`.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from data_prep.common.errors import InputError
from data_prep.common.files import atomic_file
from data_prep.common.progress import progress
from data_prep.config import PrepareConfig
from data_prep.executors.local import run_all
from data_prep.sources import path_template
from data_prep.sources.simulated import DESCRIPTION
from data_prep.sources.simulated.person import Traits, draw_traits, render, sibling
from data_prep.sources.simulated.template import load_template

# Raised when the simulation changes: older people are then made anew.
COHORT_VERSION = 1

LAYOUT = "{subject}/T1w/T1w_acpc_dc_restore_brain.nii.gz"
MARKER = "cohort.json"
README = """\
THESE PEOPLE ARE SIMULATED. No image here is a scan of anybody.

Each is the ICBM152 2009a T1 template (an average of 152 adults, as packaged with nilearn), deformed
at random and given another tissue contrast, a bias field and noise. The files follow the layout of
the Human Connectome Project so that the same program reads them; they are no part of it. They
are for trying out the program, not for any statement about brains.
"""


def family_head(person: int) -> int:
    """The person whose family `person` belongs to: every sixth is a sibling of the one before."""
    return person - 1 if person % 6 == 5 else person


def subject_name(person: int) -> str:
    """Identifier of person 0, 1, ...: sim0001, sim0002, ..."""
    return f"sim{person + 1:04d}"


def people(config: PrepareConfig, folder: Path) -> list[path_template.Subject]:
    """Everybody in the cohort, whether or not their files are in `folder` yet."""
    return [
        path_template.Subject(name, family, folder, LAYOUT.replace("{subject}", name))
        for name, family in _families(config).items()
    ]


def _families(config: PrepareConfig) -> dict[str, str]:
    numbers = range(config.cohort.people)
    return {subject_name(n): f"family-{subject_name(family_head(n))}" for n in numbers}


def make(config: PrepareConfig, folder: Path, notify: Callable[[str], None]) -> None:
    """Make whoever of the cohort is missing in `folder`, and take away who is too many.

    A person depends on the seed and their own number only, so more people change nobody.

    Raises:
        InputError: `folder` holds something else, or the template is not installed.
    """
    families, seed = _families(config), config.cohort.seed
    _clear(folder, {"simulated": True, "seed": seed, "version": COHORT_VERSION}, families)
    files = [folder.absolute() / LAYOUT.replace("{subject}", name) for name in families]
    missing = [(seed, n, file) for n, file in enumerate(files) if not file.is_file()]
    if missing:
        load_template()  # says in this process what is wrong with it, if anything
        notify(f"simulating {len(missing)} people (these are not real scans)")
    made = run_all(config, write_person, missing, _died)
    for problem in progress(made, len(missing), "simulating", notify):
        if problem:
            raise InputError(problem)


def _clear(folder: Path, settings: dict[str, object], families: dict[str, str]) -> None:
    """Leave in `folder` only these people, made with these settings, and write the small files."""
    marker = folder / MARKER
    if folder.exists() and any(folder.iterdir()) and not marker.is_file():
        raise InputError(
            f"{folder} is meant for the simulated cohort but holds something else: move it away "
            "or choose another prepare.name"
        )
    try:
        same = json.loads(marker.read_bytes()) == settings
    except (OSError, ValueError):
        same = False
    for file in folder.glob(LAYOUT.replace("{subject}", "sim*")):
        if not same or file.parents[1].name not in families:
            file.unlink()
            for empty in (file.parents[0], file.parents[1]):
                if not any(empty.iterdir()):
                    empty.rmdir()
    for unfinished in folder.rglob(".*.tmp"):  # of a run that was killed
        unfinished.unlink()
    rows = [f"{name},{family}" for name, family in families.items()]
    texts = {
        MARKER: json.dumps(settings) + "\n",
        "README.txt": README,
        "subjects.csv": "\n".join(["Subject,Family_ID", *rows]) + "\n",
    }
    for name, text in texts.items():
        if not (folder / name).is_file() or (folder / name).read_text("utf-8") != text:
            with atomic_file(folder / name) as stream:
                stream.write(text.encode())


def traits_of(seed: int, person: int, shape: tuple[int, ...]) -> Traits:
    """Traits of `person`, siblings being like the head of their family."""
    own = draw_traits(seed, person, shape)
    head = family_head(person)
    return own if head == person else sibling(draw_traits(seed, head, shape), own)


def write_person(item: tuple[int, int, Path]) -> str:
    """Make person (seed, number) and write the int16 NIfTI file; "" or what went wrong."""
    seed, person, file = item
    template = load_template()
    traits = traits_of(seed, person, template.t1.shape)
    data = render(traits, template, np.random.default_rng([seed, person, 1]))
    image = nib.Nifti1Image(data, template.affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = DESCRIPTION.encode()
    try:
        with atomic_file(file) as stream:
            # Noise hardly compresses: the lightest level is as small, and quick. No time stamp,
            # so that equal people are equal files.
            stream.write(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    except OSError as error:
        return f"{file} cannot be written: {error.strerror}"
    return ""


def _died(item: tuple[int, int, Path]) -> str:
    return f"the worker process died making {item[2]}, perhaps for want of memory"
