"""serve/static: the chat page in a browser: it streams, stops, and reports errors; axe approves."""

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
    with launch_chromium() as browser, open_page(browser, server.url) as page:
        yield page


@pytest.fixture
def page(tab):
    """One page for all tests, reset before each: loading it takes half a second."""
    tab.unroute_all()
    tab.evaluate("localStorage.clear(); sessionStorage.clear()")
    tab.set_viewport_size({"width": 900, "height": 700})
    tab.emulate_media(color_scheme="light")
    tab.get_by_role("button", name="New chat").click()
    return tab


def last_reply(page):
    return page.locator(".assistant > .text").last


def fulfill_requests(page, **response):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**response))


def answer_with_error(page, status, code=None, headers=None, message="wait"):
    error = {"error": {"message": message, "code": code}}
    fulfill_requests(page, status=status, json=error, headers=headers or {})


def test_a_reply_streams_and_is_never_markup(page, server):
    server.model.seconds_per_step = 0.02
    send_message(page)
    expect(page.locator(".user .text")).to_have_text("hello")
    expect(last_reply(page)).to_contain_text("I say:")
    assert last_reply(page).text_content() != SHOWN, "text is shown while it is generated"
    expect_reply(page, SHOWN)
    assert page.locator(".log img").count() == 0
    expect(last_reply(page).locator("strong")).to_have_text("bold")
    assert page.title() == "slm_fn chat"
    expect(page.locator(".meta")).to_contain_text("tokens/s")
    expect(page.locator("#model")).to_have_text("scripted")


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
    server.model.seconds_per_step = 0.15
    send_message(page)
    expect(last_reply(page)).to_contain_text("I")
    assert server.health()["active"] == 1
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    assert server.idle_within(60)
    assert server.model.num_steps < len(server.model.reply_ids), "the reply was not stopped"
    expect(page.locator(".note")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    steps = server.model.num_steps
    page.wait_for_timeout(400)
    assert server.model.num_steps == steps
    server.model.seconds_per_step = 0.0
    send_message(page, "go on")
    expect_reply(page, SHOWN)


def test_a_new_chat_stops_the_generation(page, server):
    server.model.seconds_per_step = 0.1
    send_message(page)
    expect(last_reply(page)).to_contain_text("I")
    page.get_by_role("button", name="New chat").click()
    assert server.idle_within(60)
    assert server.model.num_steps < len(server.model.reply_ids), "the reply was not stopped"
    expect(page.locator(".message")).to_have_count(0)
    expect(page.get_by_text("Say something.")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_an_error_is_explained_and_can_be_retried(page):
    page.route("**/v1/chat/completions", lambda route: route.abort())
    send_message(page)
    expect(page.locator(".error")).to_contain_text("The server cannot be reached.")
    page.unroute_all()
    for status in (429, 503):
        answer_with_error(page, status, headers={"Retry-After": "7"})
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".error")).to_contain_text("The server is busy: wait (in 7 seconds)")
        page.unroute_all()
    fulfill_requests(
        page,
        body='data: {"choices":[{"delta":{"content":"half a"}}]}\n\n',
        content_type="text/event-stream",
    )
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".error")).to_contain_text("The connection ended before the reply did.")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect_reply(page, SHOWN)
    expect(page.locator(".assistant")).to_have_count(1)
    expect(page.locator(".error")).to_have_count(0)


def test_a_key_is_requested_and_kept_for_the_tab(page):
    answer_with_error(page, 401)
    send_message(page)
    page.get_by_role("button", name="Enter key").click()
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("secret-1")
    page.unroute_all()
    keys = []
    page.on("request", lambda request: keys.append(request.all_headers().get("authorization")))
    page.keyboard.press("Enter")
    expect_reply(page, SHOWN)
    assert set(keys) == {"Bearer secret-1"}
    assert "secret-1" not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    send_message(page)
    expect_reply(page, SHOWN)
    assert keys[-1] == "Bearer secret-1"


def test_a_message_that_is_too_long_reports_the_limit(page):
    send_message(page, "long " * 400)
    expect(page.locator(".error")).to_contain_text("maximum context length is 256 tokens")
    send_message(page)
    expect_reply(page, SHOWN)
    expect(page.locator(".error")).to_have_count(0)


def test_a_long_conversation_continues_without_its_beginning(page):
    bodies = record_post_bodies(page)
    for i in range(6):
        send_message(page, f"question {i} " + "and so on " * (i % 3 + 2))
        expect(page.locator(".assistant")).to_have_count(i + 1)
        expect_reply(page, SHOWN)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".note").last).to_contain_text(
        "The beginning of the conversation was left out"
    )
    assert len(bodies) == 6, "the page knows what fits without an error of the server"
    assert len(bodies[-1]["messages"]) < 11
    assert bodies[-1]["messages"][0]["role"] == "user"
    assert page.locator(".error").count() == 0


def test_a_conversation_that_the_server_rejects_as_too_long_is_sent_again_shorter(page):
    send_message(page)
    expect_reply(page, SHOWN)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    bodies = record_post_bodies(page)
    send_message(page, "🦜" * 60)  # few characters, many tokens: more than the page could estimate
    expect(page.locator(".note").last).to_contain_text("Cut short")
    assert SHOWN.startswith(last_reply(page).text_content())
    assert [len(body["messages"]) for body in bodies] == [3, 1]


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


DISTANCE_TO_END = (
    "((log) => log.scrollHeight - log.scrollTop - log.clientHeight)(document.querySelector('.log'))"
)


def test_the_log_scrolls_only_if_it_is_at_its_end(page, server):
    page.set_viewport_size({"width": 360, "height": 320})
    for _ in range(2):
        send_message(page)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert page.evaluate(DISTANCE_TO_END) < 2
    server.model.seconds_per_step = 0.02
    send_message(page)
    expect(last_reply(page)).to_contain_text("I")
    page.evaluate("document.querySelector('.log').scrollTop = 0")
    expect(page.get_by_role("button", name="Latest")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=10_000)
    assert page.evaluate("document.querySelector('.log').scrollTop") == 0
    page.get_by_role("button", name="Latest").click()
    assert page.evaluate(DISTANCE_TO_END) < 2


def test_code_is_copied_as_it_was_written(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    fulfill_requests(
        page, body=completion_stream("```html\n<b>\n\tx</b>\n```"), content_type="text/event-stream"
    )
    send_message(page)
    page.get_by_role("button", name="Copy code").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "<b>\n\tx</b>"


def test_a_screen_reader_announces_each_block_once_and_complete(
    page, server, scripted_model, monkeypatch
):
    page.evaluate("""() => {
      window.announced = [];
      const announce = (node) => announced.push(node.textContent);
      const note = (changes) => changes.forEach(({ addedNodes }) => addedNodes.forEach(announce));
      const region = document.querySelector("[aria-live=polite]");
      new MutationObserver(note).observe(region, { childList: true });
    }""")
    text = "one\n\ntwo and so on\n\n```\nthree\n```"
    monkeypatch.setattr(
        server.model,
        "reply_ids",
        (*scripted_model.tokenizer.encode(text), server.model.reply_ids[-1]),
    )
    monkeypatch.setattr(server.model, "seconds_per_step", 0.02)
    send_message(page)
    page.locator(".assistant:not(.writing)").wait_for()
    assert page.evaluate("announced") == ["one", "two and so on", "Code: three"]
    assert page.locator(".log").get_attribute("aria-live") == "off"


@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 1200)])
def test_it_fits_and_axe_reports_no_violation(page, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 720})
    fulfill_requests(
        page, body=completion_stream(MARKDOWN + "a" * 300), content_type="text/event-stream"
    )
    send_message(page, "b" * 300)
    expect(page.locator(".meta").last).to_contain_text("token")
    fulfill_requests(page, status=503, json={"error": {"message": "full"}})
    send_message(page)
    expect(page.locator(".error")).to_be_visible()
    assert find_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    fits = "({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth"
    assert page.locator(".log").evaluate(fits)
    for button in page.get_by_role("button").all():
        if button.is_visible():
            assert min(button.bounding_box()["width"], button.bounding_box()["height"]) >= 36
    page.get_by_role("button", name="Edit").first.click()
    assert find_violations(page) == []
    for name in ("Settings", "Conversations"):
        page.get_by_role("button", name=name).click()
        assert find_violations(page) == []
        assert page.evaluate("document.querySelector('dialog[open]').scrollWidth") <= width
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name=name)).to_be_focused()


def test_the_header_stays_in_place_in_a_long_conversation(page):
    """Hidden headings for screen readers must not make the page longer than the window."""
    fulfill_requests(
        page,
        content_type="text/event-stream",
        body=completion_stream("1. one\n   - two\n\n" + "line\n\n" * 60),
    )
    for _ in range(2):
        send_message(page)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.evaluate("document.querySelector('.log').scrollTop = 0")
    assert page.evaluate("document.documentElement.scrollHeight - innerHeight") == 0
    inner = page.locator(".assistant li ul").first
    assert inner.evaluate("e => parseFloat(getComputedStyle(e).marginTop) / 16") == 0.25
    assert (
        page.locator(".assistant > .text > :first-child").first.evaluate(
            "e => getComputedStyle(e).marginTop"
        )
        == "0px"
    )
