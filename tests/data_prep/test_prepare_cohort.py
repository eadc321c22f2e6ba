"""The simulated cohort: plausible, repeatable, and honest about what it is."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep.common.errors import InputError
from data_prep.config import CohortConfig, PrepareConfig
from data_prep.preparation import prepare, summary
from data_prep.sources.simulated.cohort import family_head, traits_of
from data_prep.sources.simulated.person import (
    draw_traits,
    jacobian,
    refine,
    safe_exponential,
    smooth_noise,
)

SHAPE = (60, 72, 64)


def config(people: int) -> PrepareConfig:
    cohort = CohortConfig(people=people, seed=3)
    return PrepareConfig(name="demo", size=32, spacing_mm=6.4, workers=1, cohort=cohort)


def test_the_cohort_is_made_once_grows_without_change_and_says_what_it_is(tmp_path: Path) -> None:
    report = prepare(config(2), tmp_path, lambda line: None)
    raw = tmp_path / "raw" / "demo"
    files = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in raw.rglob("*.nii.gz")}
    manifest = json.loads((report.store.path / "manifest.json").read_text())
    assert manifest["simulated"] is True
    assert manifest["configuration"]["cohort"] == {"people": 2, "seed": 3}
    assert any("SIMULATED" in line for line in summary(report, report.store.path))
    assert not prepare(config(2), tmp_path, lambda line: None).changed

    grown = prepare(config(3), tmp_path, lambda line: None)
    assert grown.made == 1
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files} == files
    assert list(report.store.entries) == list(grown.store.entries)[:2]
    layout = "T1w/T1w_acpc_dc_restore_brain.nii.gz"
    assert sorted(str(p.relative_to(raw)) for p in raw.rglob("*") if p.is_file()) == [
        "README.txt",
        "cohort.json",
        *(f"sim000{n}/{layout}" for n in (1, 2, 3)),
        "subjects.csv",
    ]
    assert "SIMULATED" in (raw / "README.txt").read_text()

    first, second = (nib.load(raw / f"sim000{n}" / layout) for n in (1, 2))
    brains = [np.asarray(image.dataobj) for image in (first, second)]
    for image, data in zip((first, second), brains, strict=True):
        assert data.dtype == np.int16
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        litres = (data > 0).sum() / 1e6
        assert 1.3 < litres < 2.5
        assert not any(np.take(data, [0, -1], axis).any() for axis in range(3))
    overlap = 2 * ((brains[0] > 0) & (brains[1] > 0)).sum() / sum((b > 0).sum() for b in brains)
    assert 0.7 < overlap < 0.97

    prepare(config(1), tmp_path, lambda line: None)
    assert [p.name for p in raw.glob("sim*")] == ["sim0001"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "raw" / "demo" / "mine.txt"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    with pytest.raises(InputError, match="something else"):
        prepare(config(1), tmp_path, lambda line: None)
    assert other.read_text() == "mine"


def test_a_person_depends_on_seed_and_number_only() -> None:
    again = [traits_of(1, 7, SHAPE).velocity for _ in range(2)]
    np.testing.assert_array_equal(*again)
    for seed, person in [(1, 8), (2, 7)]:
        assert not np.allclose(again[0], traits_of(seed, person, SHAPE).velocity)


def test_siblings_are_alike_and_others_are_not() -> None:
    assert [n for n in range(20) if family_head(n) != n] == [5, 11, 17]

    def alike(a: int, b: int) -> float:
        fields = [traits_of(0, n, SHAPE).velocity.ravel() for n in (a, b)]
        return float(np.corrcoef(fields)[0, 1])

    assert alike(4, 5) > 0.5
    assert abs(alike(3, 4)) < 0.3
    np.testing.assert_array_equal(
        traits_of(0, 4, SHAPE).velocity, draw_traits(0, 4, SHAPE).velocity
    )


@pytest.mark.parametrize("strength", [0.0, 3.0, 60.0])
def test_no_deformation_folds(strength: float) -> None:
    noise = smooth_noise(np.random.default_rng(0), (3, 16, 18, 17), 2.0)
    displacement = safe_exponential(np.float32(strength) * noise, 4)
    assert jacobian(displacement, 4).min() > 0.1
    if strength == 0:
        assert not displacement.any()


def test_refining_a_linear_field_is_exact() -> None:
    coarse = np.indices((5, 6, 7), dtype=np.float32) * 4
    fine = refine(coarse, 4, (15, 20, 23))
    np.testing.assert_allclose(fine, np.indices((15, 20, 23)), atol=1e-5)
