"""pipeline/reports/inspect_chat.py: conversations are measured, and trained tokens are marked."""

import json

import pytest

from slm_fn.pipeline.reports import inspect_chat
from slm_fn.pipeline.reports.inspect_data import inspect


def test_conversations_are_measured_and_trained_tokens_are_marked(project):
    report = inspect(project.chat, num_samples=1, tokenizer=project.pack)
    assert report.figures["conversation: examples"] == 18
    sample = report.samples[0]
    trained = "".join(token["text"] for token in sample["tokens"] if token["trained"])
    assert trained == "the king is here.<|end|>"
    text = "".join(token["text"] for token in sample["tokens"])
    assert text == f"<|endoftext|><|user|>who is the king?<|end|><|assistant|>{trained}"
    assert sample["trained"] == sum(token["trained"] for token in sample["tokens"])
    assert report.lengths["conversation"].count == 18
    with pytest.raises(ValueError, match="name a tokenizer with --tokenizer"):
        inspect(project.chat)


def test_pairs_show_both_replies(project):
    report = inspect(project.pairs, num_samples=1, tokenizer=project.tokenizer)
    names = [sample["name"] for sample in report.samples]
    assert names == ["chosen", "rejected"] == list(inspect_chat.CONVERSATION_NAMES["pairs"])
    assert report.figures["chosen: examples"] == report.figures["rejected: examples"] == 18
    assert report.samples[0]["tokens"] != report.samples[1]["tokens"]


def test_an_invalid_conversation_is_named(project, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "assistant", "content": "b"}]},
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"chat.jsonl, line 2: .*begins with the user"):
        inspect(tmp_path / "chat.jsonl", tokenizer=project.tokenizer)
