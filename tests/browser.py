"""A real Chromium, pages that fail their test when anything went wrong in them, and axe."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as play:
        made = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield made
        made.close()


@contextmanager
def opened(browser: Browser, url: str, **how: Any) -> Iterator[Page]:
    """A page in a context of its own; an error, a dialog or a breach of its policy fails the test."""
    context = browser.new_context(viewport={"width": 900, "height": 700}, reduced_motion="reduce", **how)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if "Content Security" in line.text else None)
    page.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
    page.goto(url)
    yield page
    context.close()
    assert wrong == []


def say(page: Page, text: str = "hello") -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def replied(page: Page, text: str) -> None:
    """Wait until the last reply is whole and says this."""
    reply = page.locator(".assistant:not(.writing):last-of-type > .text")
    reply.wait_for()
    assert reply.text_content() == text


def violations(page: Page) -> list[str]:
    """What axe finds wrong, WCAG and best practices, shadow trees included."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]


def script(text: str) -> str:
    """A completion stream, as the server frames it, that says `text`."""
    events = [{"choices": [{"delta": {"content": text[i : i + 997]}}]} for i in range(0, len(text), 997)]
    events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
