"""serve/static/widget.js in a page of another origin with a strict CSP and hostile styles."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browser import (
    completion_stream,
    expect_reply,
    find_violations,
    launch_chromium,
    open_page,
    record_post_bodies,
    send_message,
)
from playwright.sync_api import expect
from scripted_model import TEXT

from slm_fn.serve.config import ServeConfig

SHOWN = TEXT.replace("**", "")
SHADOW_ROOT = "document.querySelector('slm-chat').shadowRoot"
HOSTILE_CSS = """body { font-family: Papyrus; } button, div, p { display: none !important; }
* { color: red !important; letter-spacing: 1em; }"""
PAGE = """<!doctype html><html lang="en"><head><title>foreign</title>
<link rel="stylesheet" href="hostile.css">
{head}</head><body><main><h1>A page</h1><a href="#">first</a>{body}</main></body></html>"""


class ForeignPage(BaseHTTPRequestHandler):
    """A foreign page with the strictest policy: nothing inline, no eval, no markup sinks."""

    widget_url, head, body = "", "", ""

    def do_GET(self):
        is_css = self.path.endswith("css")
        url = self.widget_url
        policy = f"default-src 'none'; style-src 'self'; script-src {url}; connect-src {url}"
        self.send_response(200)
        self.send_header("Content-Type", "text/css" if is_css else "text/html; charset=utf-8")
        self.send_header(
            "Content-Security-Policy",
            f"{policy}; require-trusted-types-for 'script'; trusted-types 'none'",
        )
        self.end_headers()
        page = PAGE.format(head=self.head, body=self.body)
        self.wfile.write((HOSTILE_CSS if is_css else page).encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def foreign():
    """The URL of the foreign page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), ForeignPage) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="module")
def chat_server(scripted_model, serve, foreign):
    """The model's server, which accepts that page."""
    with serve(scripted_model, ServeConfig(name="scripted", cors=(foreign,))) as running:
        ForeignPage.widget_url = running.url
        yield running


@pytest.fixture(scope="module")
def browser():
    with launch_chromium() as launched:
        yield launched


@pytest.fixture
def visit(browser, chat_server, foreign):
    """`visit(attributes, body)`: open the foreign page with the widget's script tag."""
    stack = []

    def visit(attributes="", body="", **context_options):
        ForeignPage.head = (
            f'<script type="module" src="{chat_server.url}/widget.js" {attributes}></script>'
        )
        ForeignPage.body = body
        context = open_page(browser, foreign, **context_options)
        stack.append(context)
        return context.__enter__()

    yield visit
    for context in stack:
        context.__exit__(None, None, None)


def test_one_script_tag_adds_a_chat_to_a_strict_page(visit, chat_server):
    page = visit(
        'data-title="Ask my model" data-greeting="Hello." '
        'data-system="Be brief." data-max-tokens="200"'
    )
    bodies = record_post_bodies(page)
    launcher = page.get_by_role("button", name="Ask my model")
    expect(launcher).to_have_attribute("aria-expanded", "false")
    launcher.click()
    expect(page.get_by_role("dialog", name="Ask my model")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    expect(page.get_by_text("Hello.")).to_be_visible()
    chat_server.model.seconds_per_step = 0.02
    send_message(page)
    expect(page.locator(".assistant > .text")).to_contain_text("I say:")
    expect_reply(page, SHOWN)
    messages = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}
    assert [(*body["messages"], body["max_tokens"]) for body in bodies] == [(*messages, 200)]
    text_style = f"getComputedStyle({SHADOW_ROOT}.querySelector('.text'))"
    assert page.evaluate(f"{text_style}.color") != "rgb(255, 0, 0)"
    assert page.evaluate(f"{text_style}.letterSpacing") == "normal"
    assert page.context.cookies() == []
    assert page.evaluate("localStorage.length") == 0
    page.keyboard.press("Escape")
    expect(launcher).to_be_focused()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_escape_stops_before_it_closes_and_a_reload_keeps_the_conversation(visit, chat_server):
    page = visit()
    page.get_by_role("button", name="Chat").click()
    send_message(page, "first")
    expect_reply(page, SHOWN)
    chat_server.model.seconds_per_step = 0.1
    chat_server.model.num_steps = 0
    send_message(page, "second")
    expect(page.locator(".assistant > .text").last).to_contain_text("I say")
    page.keyboard.press("Escape")
    expect(page.locator(".note")).to_have_text("Stopped.")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert chat_server.idle_within(60)
    assert chat_server.model.num_steps < len(chat_server.model.reply_ids), (
        "the reply was not stopped"
    )
    page.reload()
    expect(page.locator(".user .text")).to_have_text(["first", "second"])
    assert page.evaluate("document.activeElement === document.body"), (
        "a reload takes no focus from the page"
    )
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".message")).to_have_count(0)


def test_an_explicit_element_is_shown_at_its_position(visit):
    page = visit(body='<slm-chat data-title="Here" data-keep="no"></slm-chat>')
    expect(page.get_by_role("heading", name="Here")).to_be_visible()
    expect(page.locator("slm-chat")).to_have_count(1)
    send_message(page)
    expect_reply(page, SHOWN)
    assert page.evaluate("sessionStorage.length") == 0


def test_attributes_set_the_theme_and_nothing_else(visit):
    page = visit(
        'data-theme="dark" data-accent="#ffe066" data-radius="4px" '
        'data-position="left" data-font="inherit"'
    )
    launcher = page.get_by_role("button", name="Chat")
    style = "(element, name) => getComputedStyle(element).getPropertyValue(name)"
    assert launcher.evaluate(style, "background-color") == "rgb(255, 224, 102)"
    assert launcher.evaluate(style, "color") == "rgb(0, 0, 0)"
    assert launcher.bounding_box()["x"] < 100
    assert page.locator(".frame").evaluate(style, "font-family") == "Papyrus"
    change = "(value) => { document.querySelector('slm-chat').dataset.accent = value; }"
    page.evaluate(change, "darkgreen")
    assert launcher.evaluate(style, "color") == "rgb(255, 255, 255)"
    page.evaluate(change, "red; background: url(https://evil.example)")
    assert launcher.evaluate(style, "background-color") == "rgb(163, 180, 255)"


@pytest.mark.parametrize(("theme", "width"), [("light", 360), ("dark", 1000)])
def test_it_fits_and_axe_reports_no_violation(visit, theme, width):
    page = visit(f'data-theme="{theme}" data-accent="#0a7f5a"')
    page.set_viewport_size({"width": width, "height": 640})
    page.get_by_role("button", name="Chat").click()
    answer = completion_stream("# Title\n\n- one\n\n```\n" + "a" * 300 + "\n```")
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            body=answer,
            content_type="text/event-stream",
            headers={"Access-Control-Allow-Origin": "*"},
        ),
    )
    send_message(page, "b" * 200)
    expect(page.locator(".meta").last).to_contain_text("token")
    assert [
        found for found in find_violations(page) if "slm-chat" in found or "class=" in found
    ] == []
    panel = page.get_by_role("dialog").bounding_box()
    assert panel["x"] >= 0
    assert panel["x"] + panel["width"] <= width
    log_width = page.evaluate(f"{SHADOW_ROOT}.querySelector('.log').scrollWidth")
    assert log_width <= panel["width"]


def test_a_page_that_is_not_listed_gets_no_chat(visit, chat_server, server):
    page = visit(bypass_csp=True)  # so that only the servers' CORS headers decide
    read = "(url) => fetch(url + '/v1/models').then(() => 'read', () => 'refused')"
    assert [page.evaluate(read, url) for url in (chat_server.url, server.url)] == [
        "read",
        "refused",
    ]
