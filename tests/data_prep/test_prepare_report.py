"""The quality report: complete, escaped, self-contained, the same for the same store."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from small_volumes import LAYOUT, brain, write_cohort, write_nifti
from test_prepare_stage import configured

from data_prep.__main__ import main
from data_prep.common.tracking import KIND, MODEL_TRAINING, NOTE
from data_prep.report.page import PAGE, TABLE, digest, is_current, write_report
from data_prep.report.quality import (
    BINS,
    FEWEST,
    MEASURES,
    THRESHOLD,
    compared,
    measure,
    measured,
    robust_scores,
)
from data_prep.store import Quarantined, Store, SubjectEntry, new_manifest, write_manifest

NAMES = [str(n) for n in range(301, 313)]
HOSTILE = "<script>alert('x')</script> \"&amp; {{rows}} http://example.org/"


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    root = write_cohort(tmp_path / "raw", NAMES)
    return configured(tmp_path, root)


def study(work: Path) -> Store:
    return Store.open(work / "stores" / "study")


def page(store: Store) -> str:
    return (store.path / "report" / PAGE).read_text(encoding="utf-8")


def table(store: Store) -> list[dict[str, str]]:
    with (store.path / "report" / TABLE).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def rewritten(store: Store, quarantined: list[Quarantined], **changes: object) -> Store:
    """The same store with other entries in its manifest."""
    manifest = store.manifest
    keys = ("name", "simulated", "configuration", "image_shape", "spacing_mm")
    write_manifest(
        store.path,
        new_manifest(
            **{key: manifest[key] for key in (*keys, "orientation", "plane")},
            subjects=[replace(entry, **changes) for entry in store.entries],
            quarantined=quarantined,
        ),
    )
    return Store.open(store.path)


def quarantined(subject: str, message: str) -> Quarantined:
    return Quarantined(subject, f"{subject}.nii.gz", 1, 1, "", 0, 0, "corrupt", message)


def test_everybody_and_every_reason_is_on_the_page(
    arguments: list[str], work: Path, tmp_path: Path
) -> None:
    root = tmp_path / "raw"
    (root / LAYOUT.replace("{subject}", "999")).parent.mkdir(parents=True)
    (root / LAYOUT.replace("{subject}", "999")).write_bytes(b"<html>")
    assert main(arguments) == 3
    store, html = study(work), page(study(work))
    assert sorted(re.findall(r'class="name">(\w+)<', html)) == NAMES
    assert [row["subject"] for row in table(store) if row["status"] == "prepared"] == re.findall(
        r'class="name">(\w+)<', html
    )
    for one in store.quarantined:
        assert f">{one.reason}<" in html and escape(one.message) in html
        assert f"{one.reason}: {one.message}" in [row["notes"] for row in table(store)]
    for text in ("RAS", "1 × 1 × 1 mm", "26 × 30 × 22"):
        assert html.count(text) >= len(NAMES)


def test_a_family_is_named_where_it_has_several_subjects(arguments: list[str], work: Path) -> None:
    assert main(arguments) == 0
    write_report(study(work))
    assert 'class="family"' not in page(study(work))  # everybody is a family of their own
    write_report(rewritten(study(work), [], family="family-sim0011", split="train"))
    assert page(study(work)).count(">family sim0011<") == len(NAMES)


def test_every_part_of_the_page_can_be_reached_from_its_top(
    arguments: list[str], work: Path
) -> None:
    assert main(arguments) == 0
    html = page(study(work))
    parts = re.findall(r'<(?:h2|details) id="(\w+)"', html)
    assert "spread" in parts and re.findall(r'href="#(\w+)"', html.partition("</nav>")[0]) == parts


def test_the_page_asks_nothing_of_the_network(arguments: list[str], work: Path) -> None:
    assert main(arguments) == 0
    html = page(study(work))
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", html)
    sources = re.findall(r"\b(?:src|href|action|data)=\"([^\"]*)\"", html)
    assert len(sources) > len(NAMES)
    assert all(source.startswith(("#", "data:image/jpeg;base64,")) for source in sources)
    assert "default-src 'none'" in html[:2000]


def test_what_comes_from_files_cannot_become_html(arguments: list[str], work: Path) -> None:
    assert main(arguments) == 0
    store = rewritten(study(work), [quarantined("a", HOSTILE)], family=HOSTILE, split="train")
    write_report(store)
    html = page(store)
    assert "alert('x')" not in html and html.count("<script>") == 1
    assert html.count("{{rows}}") == 1 + len(NAMES)  # shown as it is, not filled in
    assert html.count("<tbody>") == 3
    assert table(store)[-1]["notes"] == f"corrupt: {HOSTILE}"


def test_the_table_holds_the_numbers_of_the_shards(arguments: list[str], work: Path) -> None:
    assert main(arguments) == 0
    store = study(work)
    rows = {row["subject"]: row for row in table(store)}
    for entry in store.entries:
        values = np.asarray(store.slices(entry), float)[:, 0] / 65535
        inside = values[values > 0]
        row, native = rows[entry.subject], entry.volume
        expected = {
            "slices": len(values),
            "area_cm2": (values > 0).sum((1, 2)).mean() / 100,
            "mean": inside.mean(),
            "sd": inside.std(),
            "saturated": (inside == 1).mean(),
        }
        for key, value in expected.items():
            assert float(row[key]) == pytest.approx(value, rel=1e-9, abs=1e-12), key
        assert native is not None
        assert (row["orientation"], row["shape"]) == ("RAS", "26x30x22")
        assert (float(row["low"]), float(row["high"])) == (native.low, native.high)
        assert 200 <= native.low < native.high <= 1000


def test_the_same_store_gives_the_same_bytes(
    arguments: list[str], work: Path, tmp_path: Path
) -> None:
    assert main(arguments) == 0
    first = study(work).path / "report"
    shutil.copytree(tmp_path / "raw", tmp_path / "elsewhere/raw")
    again = configured(tmp_path / "elsewhere", tmp_path / "elsewhere/raw")
    shutil.move(first, tmp_path / "kept")
    shutil.rmtree(study(work).path)
    assert main(again) == 0
    for name in (PAGE, TABLE):
        content = (study(work).path / "report" / name).read_bytes()
        assert content == (tmp_path / "kept" / name).read_bytes()
        assert str(tmp_path).encode() not in content


def remove_page(report: Path) -> None:
    (report / PAGE).unlink()


def remove_table(report: Path) -> None:
    (report / TABLE).unlink()


def age(report: Path) -> None:
    path = report / PAGE
    path.write_text(re.sub(r'(name="report" content=)"\w+"', r'\1"old"', path.read_text()))


@pytest.mark.parametrize("loss", [remove_page, remove_table, age])
def test_a_report_that_is_missing_or_old_is_made_anew_and_no_other(
    arguments: list[str],
    work: Path,
    loss: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments) == 0
    store, report = study(work), study(work).path / "report"
    before = {path.name: path.read_bytes() for path in report.iterdir()}
    stamp = (store.path / "manifest.json").stat().st_mtime_ns
    loss(report)
    assert not is_current(store)
    assert main(arguments) == 0
    assert f"quality report: {report / PAGE}" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in report.iterdir()} == before
    assert (store.path / "manifest.json").stat().st_mtime_ns == stamp
    stamps = {path: path.stat().st_mtime_ns for path in report.iterdir()}
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in report.iterdir()} == stamps


def test_the_stores_digest_knows_nothing_of_the_report(arguments: list[str], work: Path) -> None:
    assert main(arguments) == 0
    store = study(work)
    shutil.rmtree(store.path / "report")
    assert study(work).digest == store.digest
    assert digest(rewritten(store, [quarantined("a", "b")])) != digest(store)


def test_a_store_of_an_earlier_version_has_a_report_too(arguments: list[str], work: Path) -> None:
    assert main(arguments) == 0
    path = study(work).path / "manifest.json"
    manifest = json.loads(path.read_text())
    for subject in manifest["subjects"]:
        del subject["volume"], subject["findings"]
    del manifest["manifest_sha256"], manifest["checks_version"]
    path.write_text(json.dumps(manifest))
    assert all(entry.volume is None for entry in study(work).entries)
    write_report(study(work))
    assert page(study(work)).count('class="native">–<') == len(NAMES)
    assert {row["shape"] for row in table(study(work))} == {""}
    # Preparing again looks at the volumes once more.
    assert main(arguments) == 0
    assert all(entry.volume is not None for entry in study(work).entries)
    assert not page(study(work)).count('class="native">–<')


def blurred(data: np.ndarray) -> np.ndarray:
    return (gaussian_filter(data.astype(float), 1.5) * (data > 0)).astype(np.int16)


def spotted(data: np.ndarray) -> np.ndarray:
    data = data.copy()
    x, y, z = (n // 2 for n in data.shape)
    data[x - 3 : x + 3, y - 3 : y + 3, z - 3 : z + 3] = 10_000
    return data


def clipped(data: np.ndarray) -> np.ndarray:
    return np.minimum(data, np.percentile(data[data > 0], 60).astype(np.int16))


def half(data: np.ndarray) -> np.ndarray:
    data = data.copy()
    data[:, :, data.shape[2] // 2 :] = 0
    return data


PLANTED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "blurred": (blurred, "sharpness .* below .* blurred"),
    "dark": (spotted, "mean .* below .* dark"),
    "clipped": (clipped, "saturated .* above .* cut off"),
    "half": (half, "slices .* below .* field of view"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_who_is_unlike_the_others_comes_first_with_the_reason(
    case: str, arguments: list[str], work: Path, tmp_path: Path
) -> None:
    change, reason = PLANTED[case]
    write_nifti(tmp_path / "raw" / LAYOUT.replace("{subject}", "305"), change(brain(seed=5)))
    assert main([*arguments, "--prepare.slice_spacing_mm", "1"]) == 0
    first = table(study(work))[0]
    assert first["subject"] == "305"
    assert re.search(reason, first["notes"]), first["notes"]
    assert float(first["strongest"]) > THRESHOLD


def test_another_orientation_is_told_in_words(arguments: list[str], work: Path) -> None:
    assert main(arguments) == 0
    subjects = measured(study(work))
    odd = subjects[4]
    assert odd.entry.volume is not None
    entry = replace(odd.entry, volume=replace(odd.entry.volume, orientation="LPI"))
    found = compared([*subjects[:4], replace(odd, entry=entry), *subjects[5:]])
    [told] = [s for s in found if "stored as LPI, most others RAS" in s.reasons]
    assert told.entry.subject == entry.subject
    assert all(s.reasons for s in found[: found.index(told)])


def test_few_subjects_are_sorted_and_not_judged(arguments: list[str], work: Path) -> None:
    assert main(arguments) == 0
    subjects = measured(study(work))[: FEWEST - 1]
    dark = replace(subjects[3], quality=replace(subjects[3].quality, mean=0.01))
    found = compared([*subjects[:3], dark, *subjects[4:]])
    assert found[0].entry.subject == dark.entry.subject
    assert not any(s.reasons for s in found)


def test_scores_are_robust_and_their_floor_holds() -> None:
    values = [*np.linspace(0, 1, 101), 1e6]
    scores = robust_scores(values, 1e-9)
    assert max(map(abs, scores[:-1])) < 2 < 1e6 < scores[-1]
    assert robust_scores([1.0, 1.0, 1.0, 1.001], 0.01)[-1] == pytest.approx(0.1)
    assert robust_scores([None, 1.0, None], 0.1) == [0.0, 0.0, 0.0]


def test_sharpness_ignores_brightness_and_the_rim_and_falls_with_blur() -> None:
    noise = np.random.default_rng(0).standard_normal((4, 1, 48, 48))
    texture = gaussian_filter(noise, (0, 0, 1, 1))
    head = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, 48)] * 2)) < 0.8

    def shard(image: np.ndarray, scale: float = 1.0) -> np.ndarray:
        picture = (0.5 + 0.1 * image / image.std()) * head * scale
        return np.round(picture * 65535).astype(np.uint16)

    sharp = measure(shard(texture), 1.0).sharpness
    assert measure(shard(texture, 0.5), 1.0).sharpness == pytest.approx(sharp, rel=1e-3)
    assert measure(shard(gaussian_filter(texture, (0, 0, 2, 2))), 1.0).sharpness < 0.6 * sharp
    assert measure(shard(noise), 1.0).sharpness == pytest.approx(2**0.5, rel=0.1)


def test_an_empty_picture_and_a_histogram_have_sane_numbers() -> None:
    empty = measure(np.zeros((2, 1, 8, 8), np.uint16), 1.0)
    assert (empty.mean, empty.sd, empty.sharpness, empty.area_cm2) == (0, 0, 0, 0)
    full = measure(np.full((2, 1, 8, 8), 65535, np.uint16), 1.0)
    assert (full.saturated, full.histogram) == (1, (0,) * (BINS - 1) + (1,))
    assert len({one.key for one in MEASURES}) == len(MEASURES)


def test_an_image_set_has_a_page_of_its_own(work: Path, store_writer: Callable[..., Store]) -> None:
    store = store_writer(work, channels=3, plane="image")
    path = store.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["configuration"]["source"] = "cifar10"
    del manifest["manifest_sha256"]
    path.write_text(json.dumps(manifest))
    store = Store.open(store.path)
    write_report(store)
    html = page(store)
    assert "All blocks" in html and "brain area" not in html and "on disk" not in html
    assert len(re.findall("data:image/jpeg", html)) == len(store.entries)


def test_a_thousand_subjects_fit(work: Path, store_writer: Callable[..., Store]) -> None:
    """Many entries of few shards: the page stays below 10 MB."""
    small = store_writer(work, slices=8)
    many: list[SubjectEntry] = [
        replace(small.entries[n % 6], subject=f"{n:06d}", family=f"{n:06d}") for n in range(1113)
    ]
    manifest = small.manifest
    keys = ("name", "simulated", "configuration", "image_shape", "spacing_mm")
    write_manifest(
        small.path,
        new_manifest(
            **{key: manifest[key] for key in (*keys, "orientation", "plane")},
            subjects=many,
            quarantined=[],
        ),
    )
    write_report(Store.open(small.path))
    assert (small.path / "report" / PAGE).stat().st_size < 10_000_000


def test_mlflow_gets_the_report_of_a_store_that_changed(arguments: list[str], work: Path) -> None:
    from mlflow import MlflowClient

    tracked = [*arguments, "--prepare.track", "true"]
    assert main(tracked) == 0
    assert main(tracked) == 0  # nothing to do: nothing to log
    client = MlflowClient(f"sqlite:///{work.resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name("sharp-vae-mri-preparation")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("study", "FINISHED")
    assert run.data.tags["store_digest"] == study(work).digest
    assert run.data.tags["stage"] == "preparation" and run.data.tags["dataset"] == "study"
    assert experiment.tags[KIND] == MODEL_TRAINING
    assert "| train |" in run.data.tags[NOTE] and "index.html" in run.data.tags[NOTE]
    assert run.data.metrics["quarantined/all"] == 0
    assert sum(run.data.metrics[f"subjects/{s}"] for s in ("train", "validation", "test")) == 12
    assert run.data.params["prepare.size"] == "32"
    logged = sorted(Path(a.path).name for a in client.list_artifacts(run.info.run_id, "report"))
    assert logged == [PAGE, TABLE]
    assert (work / "mlartifacts").is_dir()


def test_a_failing_mlflow_costs_no_store(
    arguments: list[str],
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Refused at once; a database that cannot be opened MLflow tries again for 100 s.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://server")
    assert main([*arguments, "--prepare.track", "true"]) == 2
    told = capsys.readouterr()
    assert "the store study is finished, but MLflow can't be used" in told.err
    assert told.err.count("\n") == 1
    assert is_current(study(work))
    assert "quality report:" in told.out
