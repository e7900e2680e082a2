"""serve/static: edited messages, settings, stored conversations and the theme, in a browser."""

import json

import pytest
from browser import (
    expect_reply,
    launch_chromium,
    open_page,
    record_post_bodies,
    send_message,
)
from playwright.sync_api import expect
from scripted_model import TEXT

SHOWN = TEXT.replace("**", "")


@pytest.fixture(scope="module")
def browser():
    with launch_chromium() as launched:
        yield launched


@pytest.fixture
def page(browser, server):
    with open_page(browser, server.url) as page:
        yield page


def test_a_message_is_edited_and_a_reply_regenerated(page):
    bodies = record_post_bodies(page)
    send_message(page, "first")
    expect_reply(page, SHOWN)
    send_message(page, "second")
    expect_reply(page, SHOWN)
    page.get_by_role("button", name="Regenerate").click()
    expect_reply(page, SHOWN)
    expect(page.locator(".message")).to_have_count(4)
    page.get_by_role("button", name="Edit").first.click()
    field = page.get_by_label("Edit your message")
    expect(field).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Edit").first).to_be_focused()
    page.keyboard.press("Enter")
    field.fill("first, put better")
    page.keyboard.press("Enter")
    expect_reply(page, SHOWN)
    assert page.locator(".user .text").all_text_contents() == ["first, put better"]
    assert [[m["content"] for m in body["messages"] if m["role"] == "user"] for body in bodies] == [
        ["first"],
        ["first", "second"],
        ["first", "second"],
        ["first, put better"],
    ]


def test_settings_are_sent_and_stored(page):
    bodies = record_post_bodies(page)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    for label, value in {
        "Temperature": "0.5",
        "Top-p": "0.9",
        "Top-k": "40",
        "Min-p": "0.05",
        "Seed": "7",
    }.items():
        page.get_by_label(label).fill(value)
    page.get_by_label("Max tokens").fill("-1")
    page.get_by_role("button", name="Done").click()
    expect(
        page.get_by_label("Max tokens")
    ).to_be_visible()  # it is out of range, so the drawer stays
    page.get_by_label("Max tokens").fill("3")
    page.get_by_role("button", name="Done").click()
    page.reload()
    send_message(page)
    expect(page.locator(".note")).to_contain_text("Cut short")
    chosen = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": 7,
        "max_tokens": 3,
    }
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert bodies == [
        {"messages": messages, **chosen, "stream": True, "stream_options": {"include_usage": True}}
    ]
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Reset").click()
    page.keyboard.press("Escape")
    send_message(page)
    expect_reply(page, SHOWN)
    assert not chosen.keys() & bodies[-1].keys()


def test_conversations_stay_in_the_browser(page):
    for text in ("about parrots", "about robots"):
        page.get_by_role("button", name="New chat").click()
        send_message(page, text)
        expect_reply(page, SHOWN)
    page.reload()
    assert page.locator(".user .text").all_text_contents() == ["about robots"]
    page.get_by_role("button", name="Conversations").click()
    assert page.locator(".pick .name").all_text_contents() == ["about robots", "about parrots"]
    page.get_by_role("button", name="Rename about parrots").click()
    page.keyboard.type("Birds")
    page.keyboard.press("Enter")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export Birds").click()
    assert saved.value.suggested_filename == "Birds.md"
    assert (
        saved.value.path().read_text()
        == f"# Birds\n\n**You**\n\nabout parrots\n\n---\n\n**Model**\n\n{TEXT}\n"
    )
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export all").click()
    assert [chat["title"] for chat in json.loads(saved.value.path().read_text())] == ["", "Birds"]
    page.get_by_role("button", name="Delete about robots").click()
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Delete about robots").click()
    page.locator(".pick", has_text="Birds").click()
    assert page.locator(".user .text").all_text_contents() == ["about parrots"]
    page.reload()
    page.get_by_role("button", name="Conversations").click()
    assert page.locator(".pick .name").all_text_contents() == ["Birds"]


def test_the_theme_is_that_of_the_system_until_one_is_chosen(page):
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) != light
    page.get_by_role("button", name="Dark theme", pressed=True).click()
    assert page.evaluate(background) == light
    page.reload()
    assert page.evaluate(background) == light
    page.get_by_role("button", name="Dark theme", pressed=False).click()
    assert page.evaluate(background) != light
