"""interop/hf.py: transformers gives text and conversations the ids that slm_fn gives them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.interop import hf
from slm_fn.text.chat_template import ChatTemplate, render
from slm_fn.text.messages import Message
from slm_fn.text.training import bpe

KINDS = ["bpe", "byte-fallback", "unigram", "char"]
CONVERSATIONS = {
    "one": [("user", "to be")],
    "system": [
        ("system", "You are the question."),
        ("user", "to be?"),
        ("assistant", "or not"),
        ("user", "not"),
    ],
    "edges": [
        ("user", "  to be \n"),
        ("assistant", "\n\n or\tnot  "),
        ("user", " \r\n"),
        ("assistant", ""),
    ],
    "unicode": [("system", ""), ("user", "日本語 😀👩‍👩‍👧 é \u00a0"), ("assistant", "naïve")],
    "jinja": [
        ("user", "{{ bos }} {% if x %} {# y #} '\"\\n </s>"),
        ("assistant", "<|end |> |end|"),
    ],
}


def write(folder, tokenizer, template, context=None):
    for name, text in hf.export_files(tokenizer, template, context).items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


@pytest.fixture(scope="module")
def loaded(kinds, tmp_path_factory):
    """Every kind as transformers loads it."""
    from transformers import AutoTokenizer  # seconds, and for this module alone

    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    return {
        kind: AutoTokenizer.from_pretrained(write(folders[kind], kinds[kind], ChatTemplate(), 512))
        for kind in KINDS
    }


@pytest.mark.parametrize("reply", [False, True])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_has_our_ids(kinds, loaded, kind, conversation, reply):
    messages = [Message(role, content) for role, content in CONVERSATIONS[conversation]]
    if reply and messages[-1].role == "assistant":
        messages.append(Message("user", "and?"))
    theirs = loaded[kind].apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages],
        add_generation_prompt=reply,
        return_dict=False,
    )
    assert theirs == render(ChatTemplate(), kinds[kind], messages, reply).ids


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40).filter(lambda text: "|>" not in text))
def test_any_text_has_our_ids(kinds, loaded, text):
    assert loaded["bpe"].encode(text, add_special_tokens=False) == kinds["bpe"].encode(text)
    assert loaded["bpe"].decode(kinds["bpe"].encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_have_their_parts(kinds, loaded, kind):
    ours, theirs = kinds[kind], loaded[kind]
    assert len(theirs) == ours.vocab_size
    assert set(theirs.all_special_tokens) == set(ours.special_tokens)
    assert theirs.convert_ids_to_tokens([theirs.bos_token_id, theirs.eos_token_id]) == [
        "<|endoftext|>",
        "<|end|>",
    ]
    assert theirs.pad_token_id == ours.special_id("<|pad|>")
    assert theirs.model_max_length == 512
    assert theirs.encode("to be") == ours.encode("to be")  # nothing is put before or behind
    assert theirs.decode(ours.encode("a , b .")) == ours.decode(ours.encode("a , b ."))


def test_an_unknown_role_is_an_error_there_too(loaded):
    with pytest.raises(Exception, match="unknown role tool"):
        loaded["bpe"].apply_chat_template([{"role": "tool", "content": "x"}])


def test_names_are_quoted_in_the_template(tmp_path):
    template = ChatTemplate("<'s'>", "<\\sys>", "<|u|>", '<"a">', "<é{{>")
    tokenizer = bpe.train(
        ["to be"], 300, special_tokens=[template.bos, template.system, "<|u|>", '<"a">', "<é{{>"]
    )
    hf.check_export(write(tmp_path, tokenizer, template), tokenizer, template)


def test_without_roles_there_is_no_template():
    tokenizer = bpe.train(["to be"], 300, special_tokens=["<|endoftext|>"])
    made = hf.export_files(tokenizer, None)
    assert hf.TEMPLATE not in made
    config = json.loads(made[hf.CONFIG])
    assert "chat_template" not in config
    assert config["bos_token"] == config["eos_token"] == "<|endoftext|>"
    with pytest.raises(ValueError, match=r"no special token <\|system\|>"):
        hf.export_files(tokenizer, ChatTemplate())


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            hf.TOKENIZER,
            lambda text: text.replace('"ign', '"dropout": 0.5, "ign', 1),
            "is not the tokenizer",
        ),
        (
            hf.TEMPLATE,
            lambda text: text.replace("message['content']", "message['content'] | trim"),
            "other ids",
        ),
        (hf.TEMPLATE, lambda text: text + " ", "other ids"),
        (hf.TEMPLATE, lambda text: text.replace("{% if add_gen", "{% if not add_gen"), "other ids"),
    ],
)
def test_a_folder_that_says_otherwise_is_noticed(tokenizer, tmp_path, name, change, words):
    folder = write(tmp_path, tokenizer, ChatTemplate())
    hf.check_export(folder, tokenizer, ChatTemplate())
    before = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(change(before), encoding="utf-8", newline="")
    assert (folder / name).read_text(encoding="utf-8") != before
    with pytest.raises(ValueError, match=words):
        hf.check_export(folder, tokenizer, ChatTemplate())
