"""Reports of a run and of a comparison in a real browser: pictures, sliders, sorting, keyboard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from pages import check_pictures_and_width, opened

from pipeline.comparison.leaderboard import Result
from pipeline.comparison.page import Page, write_page
from pipeline.figures import write_figure

pytestmark = pytest.mark.slow

LOOKS = [("light", 1280), ("dark", 1280), ("light", 390)]
AT = "pair => pair.style.getPropertyValue('--at')"


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_the_sliders_of_a_run_move_by_key_and_by_mouse(
    page_writer: Callable[..., str], tmp_path: Path, scheme: str, width: int
) -> None:
    page_writer("<b>p01</b>")
    with opened(tmp_path / "report.html", scheme, width) as page:
        check_pictures_and_width(page)
        page.screenshot(path=tmp_path / "report.png", full_page=True)  # for whoever wants to look
        assert page.locator("h1 b").count() == 0
        pair = page.locator("[data-pair]").first
        slider = pair.get_by_role("slider")
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert pair.evaluate(AT) == "51%" and "51%" in slider.get_attribute("aria-valuetext")
        page.keyboard.press("Home")
        assert pair.evaluate(AT) == "0%"
        assert _left_of_reconstruction(pair) == "0%"
        box = pair.locator(".frame").bounding_box()
        page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 9)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 9)
        page.mouse.up()
        assert 73 <= float(pair.evaluate(AT).rstrip("%")) <= 77
        page.get_by_label("all at once").focus()
        page.keyboard.press("End")
        pairs = page.locator("[data-pair]")
        assert {pair.evaluate(AT) for pair in pairs.all()} == {"100%"}
        page.get_by_text("Configuration").click()
        assert page.get_by_text("run: <b>p01</b>").is_visible()
        page.emulate_media(media="print")
        assert not slider.is_visible() and _left_of_reconstruction(pair) == ""
        both = [image.bounding_box() for image in pair.locator("img").all()]
        assert both[0]["x"] + both[0]["width"] <= both[1]["x"] + 1


def _left_of_reconstruction(pair: Any) -> str:
    """What is cut off on the left of the reconstruction; empty where nothing is."""
    clip = pair.locator(".made").evaluate("image => getComputedStyle(image).clipPath")
    return "" if clip == "none" else clip.rstrip(")").split()[-1]


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """A comparison of three terms at two rates; the last has no LPIPS."""
    scores = {"gaussian": (25.0, 0.2), "blur": (24.0, 0.1), "vgg": (9.5, None)}
    results = [
        Result(term, rate, 0, {"psnr": psnr, "lpips_alex": lpips, "rate": rate}, 0.5, True)
        for rate in (200.0, 400.0)
        for term, (psnr, lpips) in scores.items()
    ]
    names = ["rate_distortion.png", "psnr_lpips_alex-200.png", "reconstructions-400.png"]
    for name in names:
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, 1])
        write_figure(tmp_path / "figures" / name, figure)
    told = "<script>alert(1)</script>"
    write_page(Page("all", results, [("store", told)], [("l3", told)], names, tmp_path, True))
    return tmp_path / "report.html"


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_the_table_of_a_comparison_is_sorted_by_key(
    comparison: Path, tmp_path: Path, scheme: str, width: int
) -> None:
    terms = "[...document.querySelector('tbody').rows].map(row => row.cells[0].textContent)"
    with opened(comparison, scheme, width) as page:
        check_pictures_and_width(page)
        page.screenshot(path=tmp_path / "comparison.png", full_page=True)
        assert page.get_by_text("alert(1)").count() == 2  # as text
        table = page.get_by_role("region", name="Reconstructions at 200 nats")
        assert page.evaluate(terms) == ["blur", "gaussian", "vgg"]  # by LPIPS
        table.get_by_role("button", name="PSNR").focus()
        page.keyboard.press("Enter")
        assert page.evaluate(terms) == ["gaussian", "blur", "vgg"]
        assert table.locator("th[aria-sort=descending]").text_content().startswith("PSNR")
        page.keyboard.press("Enter")
        assert page.evaluate(terms) == ["vgg", "blur", "gaussian"]
        for order in ("descending", "ascending"):  # what has no score comes last
            table.get_by_role("button", name="LPIPS").click()
            assert table.locator(f"th[aria-sort={order}]").count() == 1
            assert page.evaluate(terms)[-1].startswith("vgg")
        assert page.locator("[aria-sort]").count() == 1
