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
from studies import Study, content

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


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """Enough subjects to judge one by; their store beside them."""
    folder = tmp_path_factory.mktemp("twelve")
    write_cohort(folder / "raw", NAMES)
    return folder


@pytest.fixture
def many(raw: Study, twelve: Path, work: Path) -> Study:
    """Twelve subjects, prepared once."""
    shutil.copytree(twelve, raw.root.absolute().parent, dirs_exist_ok=True)
    if not raw.folder.exists():
        raw.run()
        shutil.copytree(work, twelve / "work")
    return raw


def page(store: Store) -> str:
    return (store.path / "report" / PAGE).read_text(encoding="utf-8")


def table(store: Store) -> list[dict[str, str]]:
    with (store.path / "report" / TABLE).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def rewritten(store: Store, entries: list[SubjectEntry], message: str = "") -> Store:
    """The same store with other entries in its manifest, and one quarantined if there is a word."""
    keys = ("name", "simulated", "configuration", "image_shape", "spacing_mm")
    bad = [Quarantined("a", "a.nii.gz", 1, 1, "", 0, 0, "corrupt", message)] if message else []
    manifest = new_manifest(
        **{key: store.manifest[key] for key in (*keys, "orientation", "plane")},
        subjects=entries,
        quarantined=bad,
    )
    write_manifest(store.path, manifest)
    return Store.open(store.path)


def test_everybody_and_every_reason_is_on_the_page_and_every_part_can_be_reached(
    study: Study,
) -> None:
    path = study.root / LAYOUT.replace("{subject}", "999")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"<html>")
    study.run(code=3)
    store, html = study.store, page(study.store)
    names = re.findall(r'class="name">(\w+)<', html)
    assert sorted(names) == [entry.subject for entry in store.entries]
    assert [row["subject"] for row in table(store)] == [*names, "999"]
    for one in store.quarantined:
        assert f">{one.reason}<" in html and escape(one.message) in html
        assert f"{one.reason}: {one.message}" in [row["notes"] for row in table(store)]
    for text in ("RAS", "1 × 1 × 1 mm", "26 × 30 × 22"):
        assert html.count(text) >= len(names)
    parts = re.findall(r'<(?:h2|details) id="(\w+)"', html)
    assert "spread" in parts and re.findall(r'href="#(\w+)"', html.partition("</nav>")[0]) == parts
    # It asks nothing of the network.
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", html)
    sources = re.findall(r"\b(?:src|href|action|data)=\"([^\"]*)\"", html)
    assert len(sources) > len(names)
    assert all(source.startswith(("#", "data:image/jpeg;base64,")) for source in sources)
    assert "default-src 'none'" in html[:2000]


def test_what_comes_from_files_cannot_become_html_and_families_are_named(study: Study) -> None:
    assert 'class="family"' not in page(study.store)  # everybody is a family of their own
    entries = [replace(e, family=f"family-{HOSTILE}", split="train") for e in study.store.entries]
    store = rewritten(study.store, entries, HOSTILE)
    write_report(store)
    html = page(store)
    assert "alert('x')" not in html and html.count("<script>") == 1
    assert html.count("{{rows}}") == 1 + len(entries)  # shown as it is, not filled in
    assert html.count(f">family {escape(HOSTILE[:8])}") == len(entries)
    assert html.count("<tbody>") == 3
    assert table(store)[-1]["notes"] == f"corrupt: {HOSTILE}"


def test_the_table_holds_the_numbers_of_the_shards(study: Study) -> None:
    rows = {row["subject"]: row for row in table(study.store)}
    for entry in study.store.entries:
        values = study.store.images(entry)[:, 0].astype(float)
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
            assert float(row[key]) == pytest.approx(value, rel=1e-6, abs=1e-12), key
        assert native is not None
        assert (row["orientation"], row["shape"]) == ("RAS", "26x30x22")
        assert (float(row["low"]), float(row["high"])) == (native.low, native.high)
        assert 200 <= native.low < native.high <= 1000


def test_the_same_store_gives_the_same_bytes_without_a_path_of_this_machine(
    study: Study, tmp_path: Path
) -> None:
    before, store = content(study.folder / "report"), study.store
    assert not any(str(tmp_path).encode() in text for text in before.values())
    shutil.rmtree(study.folder / "report")
    assert study.store.digest == store.digest  # which knows nothing of the report
    write_report(study.store)
    assert content(study.folder / "report") == before
    assert digest(rewritten(store, list(store.entries), "b")) != digest(store)


@pytest.mark.parametrize("loss", [PAGE, TABLE, "age"])
def test_a_report_that_is_missing_or_old_is_made_anew_and_no_other(study: Study, loss: str) -> None:
    report = study.folder / "report"
    before, stamp = content(report), study.times()["manifest.json"]
    if loss == "age":
        text = (report / PAGE).read_text()
        (report / PAGE).write_text(re.sub(r'(name="report" content=)"\w+"', r'\1"old"', text))
    else:
        (report / loss).unlink()
    assert not is_current(study.store)
    assert "quality report: " in study.run()
    assert content(report) == before and study.times()["manifest.json"] == stamp


def test_a_store_of_an_earlier_version_has_a_report_too(study: Study) -> None:
    path = study.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for subject in manifest["subjects"]:
        del subject["volume"], subject["findings"]
    del manifest["manifest_sha256"], manifest["checks_version"]
    path.write_text(json.dumps(manifest))
    write_report(study.store)
    assert page(study.store).count('class="native">–<') == 6
    assert {row["shape"] for row in table(study.store)} == {""}
    # Preparing again looks at the volumes once more.
    study.run()
    assert all(entry.volume is not None for entry in study.store.entries)


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
def test_who_is_unlike_the_others_comes_first_with_the_reason(case: str, many: Study) -> None:
    change, reason = PLANTED[case]
    write_nifti(many.root / LAYOUT.replace("{subject}", "305"), change(brain(seed=5)))
    many.run("--prepare.slice_spacing_mm", "1")
    first = table(many.store)[0]
    assert first["subject"] == "305"
    assert re.search(reason, first["notes"]), first["notes"]
    assert float(first["strongest"]) > THRESHOLD


def test_another_orientation_is_told_in_words_and_few_subjects_are_not_judged(many: Study) -> None:
    subjects = measured(many.store)
    odd = subjects[4]
    assert odd.entry.volume is not None
    entry = replace(odd.entry, volume=replace(odd.entry.volume, orientation="LPI"))
    order = compared([*subjects[:4], replace(odd, entry=entry), *subjects[5:]])
    [told] = [s for s in order if "stored as LPI, most others RAS" in s.reasons]
    assert told.entry.subject == entry.subject
    assert all(s.reasons for s in order[: order.index(told)])
    few = subjects[: FEWEST - 1]
    few[3] = replace(few[3], quality=replace(few[3].quality, mean=0.01))
    order = compared(few)
    assert order[0].entry.subject == few[3].entry.subject
    assert not any(s.reasons for s in order)


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
    empty = measure(np.zeros((2, 1, 8, 8), np.uint16), 1.0)
    assert (empty.mean, empty.sd, empty.sharpness, empty.area_cm2) == (0, 0, 0, 0)
    full = measure(np.full((2, 1, 8, 8), 65535, np.uint16), 1.0)
    assert (full.saturated, full.histogram) == (1, (0,) * (BINS - 1) + (1,))
    assert len({one.key for one in MEASURES}) == len(MEASURES)


def test_an_image_set_has_a_page_of_its_own_and_a_thousand_subjects_fit(
    work: Path, store_writer: Callable[..., Store]
) -> None:
    store = store_writer(work, channels=3, plane="image")
    store.manifest["configuration"]["source"] = "cifar10"
    store = rewritten(store, list(store.entries))
    write_report(store)
    html = page(store)
    assert "All blocks" in html and "brain area" not in html and "on disk" not in html
    assert len(re.findall("data:image/jpeg", html)) == len(store.entries)
    small = store_writer(work, "thousand", slices=8)
    every = [
        replace(small.entries[n % 6], subject=f"{n:06d}", family=f"{n:06d}") for n in range(1113)
    ]
    write_report(rewritten(small, every))
    assert (small.path / "report" / PAGE).stat().st_size < 10_000_000


def test_mlflow_gets_the_report_of_a_store_that_changed(study: Study, work: Path) -> None:
    from mlflow import MlflowClient

    for _ in range(2):  # the second time there is nothing to do: nothing to log
        study.run("--prepare.track", "true", plane="coronal")
    client = MlflowClient(f"sqlite:///{work.resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name("sharp-vae-mri-preparation")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("study", "FINISHED")
    assert run.data.tags["store_digest"] == study.store.digest
    assert run.data.tags["stage"] == "preparation" and run.data.tags["dataset"] == "study"
    assert experiment.tags[KIND] == MODEL_TRAINING
    assert "| train |" in run.data.tags[NOTE] and "index.html" in run.data.tags[NOTE]
    assert run.data.metrics["quarantined/all"] == 0
    assert sum(run.data.metrics[f"subjects/{s}"] for s in ("train", "validation", "test")) == 6
    assert run.data.params["prepare.size"] == "32"
    logged = sorted(Path(a.path).name for a in client.list_artifacts(run.info.run_id, "report"))
    assert logged == [PAGE, TABLE]
    assert (work / "mlartifacts").is_dir()


def test_a_failing_mlflow_costs_no_store(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    # Refused at once; a database that cannot be opened MLflow tries again for 100 s.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://server")
    told = study.run("--prepare.track", "true", code=2, plane="coronal")
    assert "the store study is finished, but MLflow can't be used" in told
    assert "quality report:" in told and is_current(study.store)
