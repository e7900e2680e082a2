"""serve/static: the chat page in a real browser: it streams, stops, escapes what the model says, and fits a phone."""

import shutil

import pytest
from parrot import TEXT
from playwright.sync_api import expect, sync_playwright

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


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        made = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield made
        made.close()


@pytest.fixture
def page(browser, server):
    """The page, opened; whatever it reports as an error fails the test."""
    context = browser.new_context(viewport={"width": 900, "height": 700})
    opened, wrong = context.new_page(), []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda line: wrong.append(line.text) if "Content Security" in line.text else None)
    opened.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
    opened.goto(server.url)
    yield opened
    context.close()
    assert wrong == []


def say(page, text="hello"):
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def said(page):
    return page.locator(".assistant").last


def test_a_reply_streams_and_is_never_markup(page, server):
    server.model.delay = 0.02
    say(page)
    expect(page.locator(".user")).to_have_text("hello")
    expect(said(page)).to_contain_text("I say:")
    assert said(page).text_content() != TEXT, "it shows while it is written"
    expect(said(page)).to_have_text(TEXT, use_inner_text=False)
    assert page.locator("#log img").count() == 0
    assert page.title() == "slm_fn chat"
    expect(page.locator("#speed")).to_contain_text("/s")
    expect(page.locator("#model")).to_have_text("parrot")


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_generation_within_a_token(page, server, how):
    server.model.delay = 0.15
    say(page)
    expect(said(page)).to_contain_text("I")
    assert server.health()["active"] == 1
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    assert server.idle_within(2)
    expect(page.locator(".note")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    steps = server.model.steps
    page.wait_for_timeout(500)
    assert server.model.steps == steps
    server.model.delay = 0.0
    say(page, "go on")
    expect(said(page)).to_have_text(TEXT, use_inner_text=False)


def test_a_new_chat_forgets_and_stops(page, server):
    server.model.delay = 0.1
    say(page)
    expect(said(page)).to_contain_text("I")
    page.get_by_role("button", name="New chat").click()
    assert server.idle_within(2)
    expect(page.locator(".message")).to_have_count(0)
    expect(page.get_by_text("Say something.")).to_be_visible()
    expect(page.get_by_label("Message")).to_be_focused()


def test_an_error_is_told_in_words_and_can_be_tried_again(page):
    page.route("**/v1/chat/completions", lambda route: route.abort())
    say(page)
    expect(page.locator(".error")).to_contain_text("The server cannot be reached.")
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Try again").click()
    expect(said(page)).to_have_text(TEXT, use_inner_text=False)
    expect(page.locator(".error")).to_have_count(0)


def test_a_broken_stream_is_told_and_asked_again_whole(page):
    part = 'data: {"choices":[{"delta":{"content":"half a"},"finish_reason":null}]}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=part, content_type="text/event-stream"))
    say(page)
    expect(page.locator(".error")).to_contain_text("The connection ended before the reply did.")
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Try again").click()
    expect(said(page)).to_have_text(TEXT, use_inner_text=False)
    expect(page.locator(".assistant")).to_have_count(1)


def test_too_long_a_message_says_what_fits(page):
    say(page, "long " * 400)
    expect(page.locator(".error")).to_contain_text("maximum context length is 256 tokens")
    say(page)
    expect(said(page)).to_have_text(TEXT, use_inner_text=False)
    expect(page.locator(".error")).to_have_count(0)


def test_a_long_conversation_goes_on_without_its_beginning(page):
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    for i in range(9):
        say(page, f"question {i} " + "and so on " * (i % 3))
        expect(page.locator(".assistant")).to_have_count(i + 1)
        expect(said(page)).to_have_text(TEXT, use_inner_text=False)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".note").last).to_contain_text("The beginning of the conversation was left out")
    assert len(sent) == 9, "it knows what fits without being told"
    assert len(sent[-1]["messages"]) < 9
    assert sent[-1]["messages"][0]["role"] == "user"
    assert page.locator(".error").count() == 0


def test_what_the_server_finds_too_long_is_asked_again_without_the_beginning(page):
    say(page)
    expect(said(page)).to_have_text(TEXT, use_inner_text=False)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    say(page, "🦜" * 60)  # few characters, many tokens: more than the page could guess
    expect(page.locator(".note").last).to_contain_text("Cut short")
    assert TEXT.startswith(said(page).text_content())
    assert [len(body["messages"]) for body in sent] == [3, 1]


def test_shift_enter_breaks_the_line_and_the_field_grows(page):
    field = page.get_by_label("Message")
    low = field.bounding_box()["height"]
    field.fill("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert field.input_value() == "one\ntwo"
    assert field.bounding_box()["height"] > low
    page.keyboard.press("Enter")
    expect(page.locator(".user")).to_have_text("one\ntwo")
    assert field.bounding_box()["height"] == low


def test_the_log_follows_only_a_reader_at_its_end(page, server):
    page.set_viewport_size({"width": 360, "height": 420})
    for _ in range(4):
        say(page)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert page.evaluate("log.scrollHeight - log.scrollTop - log.clientHeight") < 2
    server.model.delay = 0.02
    say(page)
    expect(said(page)).to_contain_text("I")
    page.evaluate("log.scrollTop = 0")
    expect(page.get_by_role("button", name="Latest")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=10_000)
    assert page.evaluate("log.scrollTop") == 0
    page.get_by_role("button", name="Latest").click()
    assert page.evaluate("log.scrollHeight - log.scrollTop - log.clientHeight") < 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_and_is_legible(page, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 720})
    say(page, "a" * 200)
    expect(said(page)).to_have_text(TEXT, use_inner_text=False)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("log.scrollWidth <= log.clientWidth")
    for selector in (".user", ".assistant", "#speed", "header .quiet", "#model"):
        assert contrast(page, selector) >= 4.5, selector
    for button in page.get_by_role("button").all():
        assert min(button.bounding_box()["width"], button.bounding_box()["height"]) >= 36


COLOURS = """selector => {
  const element = document.querySelector(selector);
  let back = element;
  while (getComputedStyle(back).backgroundColor === "rgba(0, 0, 0, 0)") back = back.parentElement;
  const colours = [getComputedStyle(element).color, getComputedStyle(back).backgroundColor];
  return colours.map((colour) => colour.match(/[0-9.]+/g).slice(0, 3).map(Number));
}"""


def contrast(page, selector):
    """WCAG contrast of an element's text against the first painted background behind it."""

    def luminance(rgb):
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(luminance(colour) for colour in page.evaluate(COLOURS, selector))
    return (high + 0.05) / (low + 0.05)
