"""Our pages in a real browser, for the slow tests: what they asked for, what went wrong in them."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
# Generous: a busy machine is no failure.
SHOW_MILLISECONDS = 120_000


@contextlib.contextmanager
def opened(path: Path, scheme: str, width: int = 1440) -> Iterator[Any]:
    """A page in headless Chromium; nothing else is asked for, and nothing fails, in the block."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    asked: set[str] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
        page.set_default_timeout(SHOW_MILLISECONDS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.on("request", lambda request: asked.add(request.url))
        page.goto(path.as_uri())
        yield page
        browser.close()
    assert not errors
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}


def check_pictures_and_width(page: Any) -> None:
    """Every picture is drawn and has a text in its place; the page is no wider than the window."""
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
    page.wait_for_function(
        "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    assert page.evaluate("[...document.images].every(image => image.alt)")
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
