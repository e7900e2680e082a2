"""serve/static: the chat page in a real browser: it streams, stops, tells what went wrong, and axe finds nothing."""

import pytest
from browser import chromium, opened, replied, say, script, violations
from parrot import TEXT
from playwright.sync_api import expect

SHOWN = TEXT.replace("**", "")
MARKDOWN = """## Title

1. one
2. two with `code`

```python
print("hi")
```

| a | b |
|---|---|
| 1 | 2 |

> [quoted](https://example.org)
"""


@pytest.fixture(scope="module")
def tab(server):
    with chromium() as browser, opened(browser, server.url) as page:
        yield page


@pytest.fixture
def page(tab):
    """The same page for all, as a visitor leaves it who begins anew: loading it takes half a second."""
    tab.unroute_all()
    tab.evaluate("localStorage.clear(); sessionStorage.clear()")
    tab.set_viewport_size({"width": 900, "height": 700})
    tab.emulate_media(color_scheme="light")
    tab.get_by_role("button", name="New chat").click()
    return tab


def said(page):
    return page.locator(".assistant > .text").last


def sent_by(page):
    """What the page asks the server, as it asks it."""
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    return bodies


def replies(page, **how):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**how))


def refuses(page, status, code=None, headers=None, message="wait"):
    error = {"error": {"message": message, "code": code}}
    replies(page, status=status, json=error, headers=headers or {})


def test_a_reply_streams_and_is_never_markup(page, server):
    server.model.delay = 0.02
    say(page)
    expect(page.locator(".user .text")).to_have_text("hello")
    expect(said(page)).to_contain_text("I say:")
    assert said(page).text_content() != SHOWN, "it shows while it is written"
    replied(page, SHOWN)
    assert page.locator(".log img").count() == 0
    expect(said(page).locator("strong")).to_have_text("bold")
    assert page.title() == "slm_fn chat"
    expect(page.locator(".meta")).to_contain_text("tokens/s")
    expect(page.locator("#model")).to_have_text("parrot")


def test_no_script_can_write_markup_into_the_page(tab, server):
    page = tab.context.browser.new_page()
    page.goto(server.url)
    attempt = "() => {{ try {{ {}; return 'done'; }} catch (error) {{ return error.name; }} }}"
    sinks = [
        "document.body.innerHTML = '<b>x</b>'",
        "document.createElement('iframe').srcdoc = 'x'",
        "document.createElement('script').src = 'dom.js'",
        "trustedTypes.createPolicy('mine', {})",
    ]
    assert [page.evaluate(attempt.format(sink)) for sink in sinks] == ["TypeError"] * 4
    page.close()


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
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    steps = server.model.steps
    page.wait_for_timeout(400)
    assert server.model.steps == steps
    server.model.delay = 0.0
    say(page, "go on")
    replied(page, SHOWN)


def test_a_new_chat_forgets_and_stops(page, server):
    server.model.delay = 0.1
    say(page)
    expect(said(page)).to_contain_text("I")
    page.get_by_role("button", name="New chat").click()
    assert server.idle_within(2)
    expect(page.locator(".message")).to_have_count(0)
    expect(page.get_by_text("Say something.")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_an_error_is_told_in_words_and_can_be_tried_again(page):
    page.route("**/v1/chat/completions", lambda route: route.abort())
    say(page)
    expect(page.locator(".error")).to_contain_text("The server cannot be reached.")
    page.unroute_all()
    for status in (429, 503):
        refuses(page, status, headers={"Retry-After": "7"})
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".error")).to_contain_text("The server is busy: wait (in 7 seconds)")
        page.unroute_all()
    replies(page, body='data: {"choices":[{"delta":{"content":"half a"}}]}\n\n', content_type="text/event-stream")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".error")).to_contain_text("The connection ended before the reply did.")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    replied(page, SHOWN)
    expect(page.locator(".assistant")).to_have_count(1)
    expect(page.locator(".error")).to_have_count(0)


def test_a_key_is_asked_for_and_lasts_as_long_as_the_tab(page):
    refuses(page, 401)
    say(page)
    page.get_by_role("button", name="Enter key").click()
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("secret-1")
    page.unroute_all()
    keys = []
    page.on("request", lambda request: keys.append(request.all_headers().get("authorization")))
    page.keyboard.press("Enter")
    replied(page, SHOWN)
    assert set(keys) == {"Bearer secret-1"}
    assert "secret-1" not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    say(page)
    replied(page, SHOWN)
    assert keys[-1] == "Bearer secret-1"


def test_too_long_a_message_says_what_fits(page):
    say(page, "long " * 400)
    expect(page.locator(".error")).to_contain_text("maximum context length is 256 tokens")
    say(page)
    replied(page, SHOWN)
    expect(page.locator(".error")).to_have_count(0)


def test_a_long_conversation_goes_on_without_its_beginning(page):
    sent = sent_by(page)
    for i in range(6):
        say(page, f"question {i} " + "and so on " * (i % 3 + 2))
        expect(page.locator(".assistant")).to_have_count(i + 1)
        replied(page, SHOWN)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".note").last).to_contain_text("The beginning of the conversation was left out")
    assert len(sent) == 6, "it knows what fits without being told"
    assert len(sent[-1]["messages"]) < 11
    assert sent[-1]["messages"][0]["role"] == "user"
    assert page.locator(".error").count() == 0


def test_what_the_server_finds_too_long_is_asked_again_without_the_beginning(page):
    say(page)
    replied(page, SHOWN)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    sent = sent_by(page)
    say(page, "🦜" * 60)  # few characters, many tokens: more than the page could guess
    expect(page.locator(".note").last).to_contain_text("Cut short")
    assert SHOWN.startswith(said(page).text_content())
    assert [len(body["messages"]) for body in sent] == [3, 1]


def test_shift_enter_breaks_the_line_and_the_field_grows(page):
    field = page.get_by_label("Message", exact=True)
    low = field.bounding_box()["height"]
    field.fill("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert field.input_value() == "one\ntwo"
    assert field.bounding_box()["height"] > low
    page.keyboard.press("Enter")
    expect(page.locator(".user .text")).to_have_text("one\ntwo")
    assert field.bounding_box()["height"] == low


TO_END = "((log) => log.scrollHeight - log.scrollTop - log.clientHeight)(document.querySelector('.log'))"


def test_the_log_follows_only_a_reader_at_its_end(page, server):
    page.set_viewport_size({"width": 360, "height": 320})
    for _ in range(2):
        say(page)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert page.evaluate(TO_END) < 2
    server.model.delay = 0.02
    say(page)
    expect(said(page)).to_contain_text("I")
    page.evaluate("document.querySelector('.log').scrollTop = 0")
    expect(page.get_by_role("button", name="Latest")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=10_000)
    assert page.evaluate("document.querySelector('.log').scrollTop") == 0
    page.get_by_role("button", name="Latest").click()
    assert page.evaluate(TO_END) < 2


def test_code_is_copied_as_it_was_written(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    replies(page, body=script("```html\n<b>\n\tx</b>\n```"), content_type="text/event-stream")
    say(page)
    page.get_by_role("button", name="Copy code").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "<b>\n\tx</b>"


def test_a_screen_reader_hears_each_block_once_and_whole(page, server, parrot, monkeypatch):
    page.evaluate("""() => {
      window.heard = [];
      const hear = (node) => heard.push(node.textContent);
      const note = (changes) => changes.forEach(({ addedNodes }) => addedNodes.forEach(hear));
      new MutationObserver(note).observe(document.querySelector("[aria-live=polite]"), { childList: true });
    }""")
    text = "one\n\ntwo and so on\n\n```\nthree\n```"
    monkeypatch.setattr(server.model, "said", (*parrot.tokenizer.encode(text), server.model.said[-1]))
    monkeypatch.setattr(server.model, "delay", 0.02)
    say(page)
    page.locator(".assistant:not(.writing)").wait_for()
    assert page.evaluate("heard") == ["one", "two and so on", "Code: three"]
    assert page.locator(".log").get_attribute("aria-live") == "off"


@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 1200)])
def test_it_fits_is_legible_and_axe_finds_nothing(page, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 720})
    replies(page, body=script(MARKDOWN + "a" * 300), content_type="text/event-stream")
    say(page, "b" * 300)
    expect(page.locator(".meta").last).to_contain_text("token")
    replies(page, status=503, json={"error": {"message": "full"}})
    say(page)
    expect(page.locator(".error")).to_be_visible()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(
        "(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)(document.querySelector('.log'))"
    )
    for button in page.get_by_role("button").all():
        if button.is_visible():
            assert min(button.bounding_box()["width"], button.bounding_box()["height"]) >= 36
    page.get_by_role("button", name="Edit").first.click()
    assert violations(page) == []
    for name in ("Settings", "Conversations"):
        page.get_by_role("button", name=name).click()
        assert violations(page) == []
        assert page.evaluate("document.querySelector('dialog[open]').scrollWidth") <= width
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name=name)).to_be_focused()


def test_the_line_above_stays_however_long_the_conversation(page):
    """Headings for screen readers alone must not make the page longer than the window."""
    replies(page, content_type="text/event-stream", body=script("1. one\n   - two\n\n" + "line\n\n" * 60))
    for _ in range(2):
        say(page)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.evaluate("document.querySelector('.log').scrollTop = 0")
    assert page.evaluate("document.documentElement.scrollHeight - innerHeight") == 0
    inner = page.locator(".assistant li ul").first
    assert inner.evaluate("e => parseFloat(getComputedStyle(e).marginTop) / 16") == 0.25
    assert (
        page.locator(".assistant > .text > :first-child").first.evaluate("e => getComputedStyle(e).marginTop") == "0px"
    )
