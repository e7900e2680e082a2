"""Chromium for tests: pages that fail their test when an error occurs in them, and axe."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EVENT_CHARACTERS = 997


@contextmanager
def launch_chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, url: str, **context_options: Any) -> Iterator[Page]:
    """A page in a context of its own; an error, a dialog or a CSP violation fails the test."""
    context = browser.new_context(
        viewport={"width": 900, "height": 700}, reduced_motion="reduce", **context_options
    )
    page = context.new_page()
    problems: list[str] = []

    def record_console(message: ConsoleMessage) -> None:
        if "Content Security" in message.text:
            problems.append(message.text)

    def record_dialog(dialog: Dialog) -> None:
        problems.append("dialog")
        dialog.dismiss()

    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", record_console)
    page.on("dialog", record_dialog)
    page.goto(url)
    yield page
    context.close()
    assert problems == []


def send_message(page: Page, text: str = "hello") -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def expect_reply(page: Page, text: str) -> None:
    """Wait until the last reply is complete and has this text."""
    reply = page.locator(".assistant:not(.writing):last-of-type > .text")
    reply.wait_for()
    assert reply.text_content() == text


def record_post_bodies(page: Page) -> list[Any]:
    """A list to which the JSON of every POST request of the page is added."""
    bodies: list[Any] = []

    def record(request: Request) -> None:
        if request.method == "POST":
            bodies.append(request.post_data_json)

    page.on("request", record)
    return bodies


def find_violations(page: Page) -> list[str]:
    """The violations that axe reports, of WCAG and best practices, shadow trees included."""
    rules = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:200]}" for rule in rules for node in rule["nodes"]]


def completion_stream(text: str) -> str:
    """A completion stream with `text`, as the server frames it."""
    starts = range(0, len(text), EVENT_CHARACTERS)
    deltas = [{"content": text[start : start + EVENT_CHARACTERS]} for start in starts]
    events = [{"choices": [{"delta": delta}]} for delta in deltas]
    events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join(lines) + "data: [DONE]\n\n"
