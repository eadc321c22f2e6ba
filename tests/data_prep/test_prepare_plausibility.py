"""Is that a brain: background, masks, and the table of expectations."""

import json
from pathlib import Path

import numpy as np
import pytest
from adult_heads import affine, head, real, save
from test_prepare_stage import configured

from data_prep.__main__ import configuration, main
from data_prep.common.errors import VolumeError
from data_prep.config import PrepareConfig
from data_prep.store import OWN_DIGEST, Store
from data_prep.volume.plausibility import (
    BACKGROUND,
    MASK_VALUES,
    PlausibilityConfig,
    code_of,
    expectations,
)
from data_prep.volume.transforms import Volume, load_volume

CONFIG = PrepareConfig(source="hcp", root=".")
DATA = head()
BRAIN = DATA > 0


def loaded(
    folder: Path, data: np.ndarray, mask: np.ndarray | None = None, **keys: object
) -> Volume:
    given = None if mask is None else save(folder / "mask.nii.gz", mask)
    config = PrepareConfig(source="hcp", root=".", **keys)  # type: ignore[arg-type]
    return load_volume(save(folder / "a.nii.gz", data), given, config)


def codes(volume: Volume) -> list[str]:
    return [code_of(flag) for flag in volume.scan.flags]


def test_an_adults_brain_is_as_expected(tmp_path: Path) -> None:
    assert loaded(tmp_path, DATA).scan.flags == ()


def test_a_real_brain_is_as_expected(tmp_path: Path, oasis: Path) -> None:
    data = real()
    assert data is not None
    path = save(tmp_path / "a.nii.gz", data, affine(2))
    assert load_volume(path, None, CONFIG).scan.flags == ()


@pytest.mark.parametrize("offset", [-1, 1, 1000, -1024])
def test_a_constant_background_that_is_not_0_is_found(tmp_path: Path, offset: int) -> None:
    volume = loaded(tmp_path, DATA + np.float32(offset))
    np.testing.assert_array_equal(volume.mask, BRAIN)
    np.testing.assert_allclose(volume.data, loaded(tmp_path, DATA).data, atol=1e-4)
    assert codes(volume) == [BACKGROUND]
    assert f"its background is {offset}" in volume.scan.flags[0]


@pytest.mark.parametrize("kind", ["brain alone", "whole image", "robust"])
def test_standardised_intensities_are_seen(tmp_path: Path, kind: str) -> None:
    inside = DATA[BRAIN]
    if kind == "brain alone":
        data = np.where(BRAIN, (DATA - inside.mean()) / inside.std(), 0)
    elif kind == "robust":
        data = np.where(BRAIN, (DATA - np.median(inside)) / np.ptp(inside), 0)
    else:
        data = (DATA - DATA.mean()) / DATA.std()
    volume = loaded(tmp_path, data.astype(np.float32))
    assert (volume.mask != BRAIN).mean() < 1e-4  # a voxel may be the median itself
    assert codes(volume) == [BACKGROUND]


def test_what_resampling_leaves_below_0_is_no_brain(tmp_path: Path) -> None:
    """As ever: a few values below 0 around a brain, or a rim of another constant."""
    data = DATA.copy()
    ringing = np.random.default_rng(0).random(DATA.shape) < 0.05
    data[ringing & ~BRAIN] = -3
    volume = loaded(tmp_path, data)
    np.testing.assert_array_equal(volume.mask, BRAIN)
    assert codes(volume) == []
    padded = np.pad(DATA, 2, constant_values=-1)
    np.testing.assert_array_equal(loaded(tmp_path, padded).mask, np.pad(BRAIN, 2))


def test_a_background_of_noise_is_flagged(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(1, 20, DATA.shape).astype(np.float32)
    found = codes(loaded(tmp_path, np.where(BRAIN, DATA, noise)))
    assert {"filled_percent", "box_percent", "cut_off_percent", "brain_ml"} <= set(found)
    masked = loaded(tmp_path, np.where(BRAIN, DATA, noise), BRAIN.astype(np.uint8))
    assert codes(masked) == []


@pytest.mark.parametrize("value", [1, 255, 7, 0.003])
def test_a_mask_of_one_value_is_a_mask_whatever_the_value(tmp_path: Path, value: float) -> None:
    volume = loaded(tmp_path, DATA + 50, (BRAIN * value).astype(np.float32))
    np.testing.assert_array_equal(volume.mask, BRAIN)
    assert codes(volume) == []


def probability() -> np.ndarray:
    """1 inside, and falling to 0 over some voxels around the brain."""
    from scipy.ndimage import distance_transform_edt

    return np.clip(1 - distance_transform_edt(~BRAIN) / 6, 0, 1).astype(np.float32)


@pytest.mark.parametrize(("scale", "threshold"), [(1, 0.5), (1, 0.9), (100, 50), (255, 127)])
def test_a_map_of_probabilities_is_cut_at_the_threshold_and_that_is_said(
    tmp_path: Path, scale: float, threshold: float
) -> None:
    mask = probability() * scale
    stored = np.round(mask).astype(np.int16) if scale > 1 else mask
    volume = loaded(tmp_path, DATA + 50, stored, mask_threshold=threshold)
    np.testing.assert_array_equal(volume.mask, stored >= threshold)
    assert codes(volume)[0] == MASK_VALUES
    assert f"brain is from {threshold:g} on" in volume.scan.flags[0]


def test_percentages_as_a_mask_are_not_taken_for_certain_in_silence(tmp_path: Path) -> None:
    stored = np.round(probability() * 100).astype(np.uint8)
    volume = loaded(tmp_path, DATA + 50, stored)
    assert "set it to 50" in volume.scan.flags[0]


def test_labels_are_a_mask(tmp_path: Path) -> None:
    labels = np.where(BRAIN, 1 + (np.arange(DATA.shape[0]) % 40)[:, None, None] * 50, 0)
    volume = loaded(tmp_path, DATA + 50, labels.astype(np.int16))
    np.testing.assert_array_equal(volume.mask, BRAIN)


def half(data: np.ndarray) -> np.ndarray:
    data = data.copy()
    data[:, :, :26] = 0
    return data


def cut(data: np.ndarray) -> np.ndarray:
    return data[:, :, 14:]


def specks(data: np.ndarray) -> np.ndarray:
    data = data.copy()
    apart = np.indices(data.shape) % 2 == 0
    data[apart.all(axis=0) & (data == 0)] = 500
    return data


def clipped(data: np.ndarray) -> np.ndarray:
    return np.minimum(data, np.percentile(data[data > 0], 90)).astype(np.float32)


def dark(data: np.ndarray) -> np.ndarray:
    data = data / 5
    data[20:26, 20:26, 20:26] = 3000
    return data.astype(np.float32)


@pytest.mark.parametrize(
    ("spoiled", "expected"),
    [
        (half, "brain_ml"),
        (cut, "cut_off_percent"),
        (specks, "largest_piece_percent"),
        (clipped, "saturated_percent"),
        (dark, "mean_percent"),
    ],
)
def test_each_expectation_is_missed_by_what_it_is_for(
    tmp_path: Path, spoiled: object, expected: str
) -> None:
    assert expected in codes(loaded(tmp_path, spoiled(DATA)))  # type: ignore[operator]


@pytest.mark.parametrize("side", [2.0, 7.0])
def test_a_wrong_voxel_size_is_seen(tmp_path: Path, side: float) -> None:
    path = save(tmp_path / "a.nii.gz", DATA, affine(side))
    found = [code_of(flag) for flag in load_volume(path, None, CONFIG).scan.flags]
    assert {"brain_ml", "length_mm"} <= set(found)


def test_flags_become_the_quarantine_by_choice_and_back(
    tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And only subjects of whom that is true are prepared again."""
    root = tmp_path / "raw"
    save(root / "good.nii.gz", DATA)
    save(root / "half.nii.gz", half(DATA))
    arguments = configured(tmp_path, root, template="{subject}.nii.gz", spacing_mm=6.0)
    arguments += ["--prepare.plausibility.action=flag"]
    assert main(arguments) == 0
    store = Store.open(work / "stores/study")
    flags = {entry.subject: entry.flags for entry in store.entries}
    assert not flags["good"] and code_of(flags["half"][0]) == "brain_ml"
    findings = {entry.subject: entry.findings for entry in store.entries}
    assert set(findings["good"]) == {row.name for row in expectations()}
    ml = BRAIN.sum() * 4**3 / 1000
    assert findings["good"]["brain_ml"] == pytest.approx(ml, rel=1e-3)
    html = (store.path / "report/index.html").read_text()
    assert html.count("brain volume") >= 2 and "expected 700 to 2,200" in html
    assert "doi 10.1093/cercor/bhy109" in html
    assert "half: brain volume" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out

    assert main([*arguments, "--prepare.plausibility.action=quarantine"]) == 3
    told = capsys.readouterr().out
    assert "prepare.plausibility changed: 1 subject: half" in told
    assert "half: implausible: half.nii.gz: brain volume" in told
    assert [q.reason for q in Store.open(work / "stores/study").quarantined] == ["implausible"]

    wider = [
        "--prepare.plausibility.brain_ml=[100,2200]",
        "--prepare.plausibility.height_mm=[40,220]",
    ]
    assert main([*arguments, "--prepare.plausibility.action=quarantine", *wider]) == 0
    store = Store.open(work / "stores/study")
    assert not store.quarantined and not any(entry.flags for entry in store.entries)


def test_ranges_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("[5,1]", "[-1,3]", "[1,.inf]", "3"):
        argument = f"--prepare.plausibility.brain_ml={wrong}"
        assert main(["--prepare.name=x", argument]) == 2
        assert "brain_ml" in capsys.readouterr().err
    assert main(["--prepare.name=x", "--prepare.plausibility.action=stop"]) == 2
    assert "'flag', 'quarantine', 'ignore'" in capsys.readouterr().err


def test_every_expectation_has_a_source_and_words() -> None:
    rows = expectations()
    assert len(rows) == 12
    for row in rows:
        assert row.metadata["source"] and row.metadata["label"]
        assert row.metadata["below"] or row.metadata["above"]


def test_settings_of_before_give_the_configuration_of_before() -> None:
    """Keys that are new are recorded only where they are used: a store keeps its digest."""
    config = configuration(["--prepare.source=hcp", "--prepare.name=x"])
    assert config is not None
    new = {"plausibility", "mask_threshold", "assume_orientation"}
    assert not new & config.recorded().keys()
    ours = PlausibilityConfig(action="ignore")
    assert PrepareConfig(plausibility=ours).recorded()["plausibility"]["action"] == "ignore"


def test_a_store_of_an_earlier_version_is_read_and_checked_anew(
    tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "raw"
    save(root / "a.nii.gz", DATA)
    arguments = configured(tmp_path, root, template="{subject}.nii.gz", spacing_mm=6.0)
    assert main(arguments) == 0
    path = work / "stores/study/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["checks_version"], manifest[OWN_DIGEST]
    for item in manifest["subjects"]:
        del item["findings"]
    path.write_text(json.dumps(manifest))
    before = Store.open(path.parent)
    assert before.entries[0].findings == {}
    capsys.readouterr()
    assert main(arguments) == 0
    assert "an earlier version of this program checked it" in capsys.readouterr().out
    after = Store.open(path.parent)
    assert after.digest == before.digest and after.entries[0].findings


def test_a_quarantined_brain_is_named_with_all_that_is_odd(tmp_path: Path) -> None:
    expected = PlausibilityConfig(action="quarantine")
    with pytest.raises(VolumeError) as error:
        loaded(tmp_path, half(DATA), plausibility=expected)
    assert error.value.reason == "implausible"
    assert "brain volume" in str(error.value) and "brain height" in str(error.value)
