"""The quality report in a real browser: pictures, filter, sorting, no network, no errors."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import opened

from data_prep.report.page import write_report
from data_prep.store import Quarantined, Store, new_manifest, write_manifest, write_shard

pytestmark = pytest.mark.slow

SPLITS = ("train",) * 12 + ("validation",) * 4 + ("test",) * 4


@pytest.fixture
def report(work: Path, store_writer: Callable[..., Store]) -> Path:
    """Twenty subjects, the eighth of them dark, and one in quarantine with a hostile message."""
    store = store_writer(work, splits=SPLITS)
    entries = list(store.entries)
    dark = np.asarray(store.slices(entries[7])) / 65535 * 0.2
    entries[7] = replace(entries[7], **write_shard(store.path, entries[7].subject, dark))
    keys = ("name", "simulated", "configuration", "image_shape", "spacing_mm")
    told = "<img src='http://example.org/x.png'><script>alert(1)</script>"
    write_manifest(
        store.path,
        new_manifest(
            **{key: store.manifest[key] for key in (*keys, "orientation", "plane")},
            subjects=entries,
            quarantined=[Quarantined("q", "q.nii.gz", 1, 1, "", 0, 0, "corrupt", told)],
        ),
    )
    write_report(Store.open(store.path))
    return store.path / "report/index.html"


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, report: Path) -> Iterator[Any]:
    """The report in headless Chromium; nothing else was asked for, nothing failed."""
    with opened(report, request.param) as page:
        yield page


def test_the_browser_shows_filters_and_sorts(page: Any, tmp_path: Path) -> None:
    names = "[...document.querySelectorAll('#subjects tbody tr:not([hidden]) .name')]"
    names += ".map(name => name.textContent)"
    everybody = [f"p{n:02d}" for n in range(len(SPLITS))]
    page.screenshot(path=tmp_path / "report.png")  # kept by pytest for whoever wants to look

    assert page.evaluate(names)[0] == "p07"
    assert sorted(page.evaluate(names)) == everybody
    first = page.locator("#subjects tbody tr").first
    assert "mean" in first.locator("ul").text_content()
    assert page.get_by_text("alert(1)").is_visible()  # as text
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    wide = "document.querySelector('#subjects').parentNode"
    assert not page.evaluate(f"{wide}.scrollWidth > {wide}.clientWidth")
    page.set_viewport_size({"width": 1280, "height": 1000})
    assert not page.evaluate(f"{wide}.scrollWidth > {wide}.clientWidth")
    page.set_viewport_size({"width": 390, "height": 1000})
    page.locator(".beyond:not(.before) > #subjects").wait_for()  # says that there is more
    page.evaluate(f"{wide}.scrollLeft = 99999")
    page.locator(".before:not(.beyond) > #subjects").wait_for()
    page.evaluate(f"{wide}.scrollLeft = 0")
    page.set_viewport_size({"width": 1440, "height": 1000})

    for image in page.locator("#subjects img").all():
        image.scroll_into_view_if_needed()
    page.wait_for_function(
        "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    assert page.evaluate("document.images.length") == len(SPLITS)

    page.get_by_label("Filter by name or reason").fill("P1")
    assert sorted(page.evaluate(names)) == everybody[10:]
    page.get_by_label("Split").select_option("test")
    assert sorted(page.evaluate(names)) == everybody[16:]
    assert page.locator("#count").text_content() == "4 of 20 shown"
    page.get_by_label("Filter by name or reason").fill("")
    page.get_by_label("Split").select_option("")
    page.get_by_label("only those to look at").check()
    assert "p07" in page.evaluate(names) and len(page.evaluate(names)) < len(SPLITS)
    page.get_by_label("only those to look at").uncheck()

    head = page.get_by_role("button", name="subject", exact=True)
    head.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(names) == everybody
    page.keyboard.press("Enter")
    assert page.evaluate(names) == everybody[::-1]
    assert page.locator("th[aria-sort]").count() == 1
    mean = page.get_by_role("button", name="mean", exact=True)
    mean.click()
    mean.click()
    assert page.locator("th[aria-sort=ascending]").text_content() == "mean"
    assert page.evaluate(names)[0] == "p07"
