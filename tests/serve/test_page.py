"""serve/static: a real browser opens the page, types, watches tokens arrive, stops; the model's markup stays text."""

import os
import shutil
from collections.abc import Iterator

import pytest
from parrot import TEXT, Server
from playwright.sync_api import Browser, Page, expect, sync_playwright

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def browser_path() -> str:
    """The installed Chromium; the README names it as what the tests need."""
    names = (os.environ.get("CHROMIUM", "chromium"), "chromium-browser", "google-chrome", "chrome", "msedge")
    found = next((path for name in names if (path := shutil.which(name))), None)
    assert found, "the browser tests need Chromium or Chrome: install it, or name it in the environment as CHROMIUM"
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    made = browser.new_page()
    problems: list[str] = []
    made.on("pageerror", lambda error: problems.append(str(error)))
    made.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    made.goto(server.url)
    expect(made.locator("#model")).to_have_text("parrot")
    yield made
    made.close()
    assert problems == []
    assert server.idle_within(5)


def say(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def test_a_reply_streams_and_is_shown_as_text(page: Page, server: Server) -> None:
    server.model.delay = 0.05
    say(page, "hello")
    reply = page.locator(".assistant")
    expect(reply).to_contain_text("I say")
    assert reply.inner_text() != TEXT, "it is still being written"
    expect(reply).to_have_text(TEXT, timeout=15_000)
    assert page.locator("main img").count() == 0
    assert page.title() == "slm_fn chat"
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_stop_ends_the_generation_within_a_token(page: Page, server: Server) -> None:
    server.model.delay = 0.2
    say(page, "hello")
    expect(page.locator(".assistant")).to_contain_text("I")
    assert server.health()["active"] == 1
    page.get_by_role("button", name="Stop").click()
    steps = server.model.steps
    assert server.idle_within(3)
    assert server.model.steps - steps <= 2
    expect(page.locator(".note")).to_have_text("Stopped.")
    server.model.delay = 0.0
    say(page, "again")
    expect(page.locator(".assistant").last).to_have_text(TEXT, timeout=15_000)


def test_escape_stops_and_shift_enter_is_a_new_line(page: Page, server: Server) -> None:
    box = page.get_by_label("Message")
    box.fill("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert box.input_value() == "one\ntwo"
    server.model.delay = 0.2
    page.keyboard.press("Enter")
    expect(page.locator(".assistant")).to_contain_text("I")
    page.keyboard.press("Escape")
    assert server.idle_within(3)


def test_a_new_chat_forgets(page: Page, server: Server) -> None:
    say(page, "hello")
    expect(page.locator(".assistant")).to_have_text(TEXT, timeout=15_000)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#hint")).to_be_visible()


def test_what_went_wrong_is_said_and_can_be_tried_again(browser: Browser, server: Server) -> None:
    page = browser.new_page()
    page.goto(server.url)
    say(page, "long " * 400)
    expect(page.locator(".error")).to_contain_text("maximum context length")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    say(page, "short")
    expect(page.locator(".assistant")).to_have_text(TEXT, timeout=15_000)
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1000])
def test_both_schemes_and_a_phone_fit(browser: Browser, server: Server, scheme: str, width: int, tmp_path) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 640})  # type: ignore[arg-type]
    page.goto(server.url)
    say(page, "hello, " + "long-word" * 20)
    expect(page.locator(".assistant")).to_have_text(TEXT, timeout=15_000)
    page.screenshot(path=os.path.join(os.environ.get("SHOTS", str(tmp_path)), f"{scheme}-{width}.png"))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (shade > 128) == (scheme == "light")
    page.close()
