"""The report of a run in a real browser: pictures, sliders, keyboard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import check_pictures_and_width, opened

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
