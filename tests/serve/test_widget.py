"""serve/static/widget.js in a foreign page: another origin, a strict policy, a style sheet that shouts."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browser import chromium, opened, replied, say, script, violations
from parrot import TEXT
from playwright.sync_api import expect

from slm_fn.serve.config import ServeConfig

SHOWN = TEXT.replace("**", "")
LOUD = """body { font-family: Papyrus; } button, div, p { display: none !important; }
* { color: red !important; letter-spacing: 1em; }"""
PAGE = """<!doctype html><html lang="en"><head><title>foreign</title><link rel="stylesheet" href="loud.css">
{head}</head><body><main><h1>A page</h1><a href="#">first</a>{body}</main></body></html>"""


class Foreign(BaseHTTPRequestHandler):
    """A page of somebody else's, as strict as pages get: nothing inline, no evaluation, no sink for markup."""

    home, head, body = "", "", ""

    def do_GET(self):
        policy = f"default-src 'none'; style-src 'self'; script-src {self.home}; connect-src {self.home}"
        self.send_response(200)
        self.send_header("Content-Type", "text/css" if self.path.endswith("css") else "text/html; charset=utf-8")
        self.send_header(
            "Content-Security-Policy", f"{policy}; require-trusted-types-for 'script'; trusted-types 'none'"
        )
        self.end_headers()
        page = LOUD if self.path.endswith("css") else PAGE.format(head=self.head, body=self.body)
        self.wfile.write(page.encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def foreign():
    """Where the foreign page is."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="module")
def home(parrot, serve, foreign):
    """The model's server, which lets that page in."""
    with serve(parrot, ServeConfig(name="parrot", cors=(foreign,))) as running:
        Foreign.home = running.url
        yield running


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture
def visit(browser, home, foreign):
    """Open the foreign page with a script tag of these attributes, or with an element of one's own."""
    stack = []

    def visit(attributes="", body="", **how):
        Foreign.head = f'<script type="module" src="{home.url}/widget.js" {attributes}></script>'
        Foreign.body = body
        made = opened(browser, foreign, **how)
        stack.append(made)
        return made.__enter__()

    yield visit
    for made in stack:
        made.__exit__(None, None, None)


def test_one_script_tag_puts_a_chat_into_a_strict_page(visit, home):
    page = visit('data-title="Ask my model" data-greeting="Hello." data-system="Be brief." data-max-tokens="200"')
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    launcher = page.get_by_role("button", name="Ask my model")
    expect(launcher).to_have_attribute("aria-expanded", "false")
    launcher.click()
    expect(page.get_by_role("dialog", name="Ask my model")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    expect(page.get_by_text("Hello.")).to_be_visible()
    home.model.delay = 0.02
    say(page)
    expect(page.locator(".assistant > .text")).to_contain_text("I say:")
    replied(page, SHOWN)
    asked = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}
    assert [(*body["messages"], body["max_tokens"]) for body in sent] == [(*asked, 200)]
    assert (
        page.evaluate("getComputedStyle(document.querySelector('slm-chat').shadowRoot.querySelector('.text')).color")
        != "rgb(255, 0, 0)"
    )
    assert (
        page.evaluate(
            "getComputedStyle(document.querySelector('slm-chat').shadowRoot.querySelector('.text')).letterSpacing"
        )
        == "normal"
    )
    assert page.context.cookies() == []
    assert page.evaluate("localStorage.length") == 0
    page.keyboard.press("Escape")
    expect(launcher).to_be_focused()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_escape_stops_before_it_closes_and_the_talk_goes_on_after_a_reload(visit, home):
    page = visit()
    page.get_by_role("button", name="Chat").click()
    say(page, "first")
    replied(page, SHOWN)
    home.model.delay = 0.1
    say(page, "second")
    expect(page.locator(".assistant > .text").last).to_contain_text("I say")
    page.keyboard.press("Escape")
    expect(page.locator(".note")).to_have_text("Stopped.")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert home.idle_within(2)
    page.reload()
    expect(page.locator(".user .text")).to_have_text(["first", "second"])
    assert page.evaluate("document.activeElement === document.body"), "a reload takes no focus from the page"
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".message")).to_have_count(0)


def test_an_element_of_one_s_own_is_a_box_where_it_stands(visit):
    page = visit(body='<slm-chat data-title="Here" data-keep="no"></slm-chat>')
    expect(page.get_by_role("heading", name="Here")).to_be_visible()
    expect(page.locator("slm-chat")).to_have_count(1)
    say(page)
    replied(page, SHOWN)
    assert page.evaluate("sessionStorage.length") == 0


def test_attributes_theme_it_and_no_more_than_that(visit):
    page = visit('data-theme="dark" data-accent="#ffe066" data-radius="4px" data-position="left" data-font="inherit"')
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
def test_it_fits_and_axe_finds_nothing(visit, theme, width):
    page = visit(f'data-theme="{theme}" data-accent="#0a7f5a"')
    page.set_viewport_size({"width": width, "height": 640})
    page.get_by_role("button", name="Chat").click()
    answer = script("# Title\n\n- one\n\n```\n" + "a" * 300 + "\n```")
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            body=answer, content_type="text/event-stream", headers={"Access-Control-Allow-Origin": "*"}
        ),
    )
    say(page, "b" * 200)
    expect(page.locator(".meta").last).to_contain_text("token")
    assert [found for found in violations(page) if "slm-chat" in found or "class=" in found] == []
    panel = page.get_by_role("dialog").bounding_box()
    assert panel["x"] >= 0
    assert panel["x"] + panel["width"] <= width
    assert (
        page.evaluate("document.querySelector('slm-chat').shadowRoot.querySelector('.log').scrollWidth")
        <= panel["width"]
    )


def test_a_page_that_is_not_listed_gets_no_chat(visit, home, server):
    page = visit(bypass_csp=True)  # so that only the servers' own word counts
    read = "(url) => fetch(url + '/v1/models').then(() => 'read', () => 'refused')"
    assert [page.evaluate(read, url) for url in (home.url, server.url)] == ["read", "refused"]
