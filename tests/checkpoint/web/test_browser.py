"""The page in a real browser: on a desk and on a phone, light and dark, and acted on by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoint.manifest import checkpoint_directory, read_manifest

TOKEN = "0123456789abcdef0123456789abcdef"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra docs)")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs chromium; on Debian: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def url(make_run: Callable[..., Path], open_page: OpenPage) -> str:
    """The page of a service with one run, whose newest checkpoint is damaged."""
    run = make_run("float32")
    checkpoint = checkpoint_directory(run, 4)
    path = checkpoint / read_manifest(checkpoint).files[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    return str(open_page().url)


def test_the_page_in_a_browser(browser: Any, url: str, tmp_path: Path) -> None:
    phone = browser.new_context(viewport={"width": 375, "height": 700}, color_scheme="dark")
    desk = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    grounds = []
    for context in (desk, phone):
        page = context.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(url)
        problems, runs = page.locator("#problems"), page.get_by_role("heading", name="Runs")
        assert problems.bounding_box()["y"] < runs.bounding_box()["y"]
        assert "contents changed" in problems.inner_text()
        assert page.locator("svg.curve").bounding_box()["height"] > 50
        # nothing is wider than the screen; tables scroll by themselves
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        assert all(address.startswith(url) for address in asked)
        assert [text for text in said if "favicon" not in text and "404" not in text] == []
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(246, 247, 249)", "rgb(18, 23, 29)"]
    act_by_hand(desk.new_page(), url)
    for context in (desk, phone):
        context.close()


def act_by_hand(page: Any, url: str) -> None:
    page.goto(url)
    page.get_by_role("link", name="run-float32").first.click()
    page.get_by_label("action").select_option("pin")
    page.get_by_label("step").select_option("2")
    page.get_by_label("token").fill("not the token at all")
    page.get_by_role("button").click()
    assert "the token is missing or wrong" in page.content()
    page.go_back()
    page.get_by_label("action").select_option("pin")
    page.get_by_label("step").select_option("2")
    page.get_by_label("token").fill(TOKEN)
    page.get_by_role("button").click()
    assert page.get_by_role("status").inner_text() == "step 2 of run-float32 is pinned"
