"""pipeline/demo_data.py: nothing that is held out is in a training file."""

import pytest

from slm_fn.data.chat import records
from slm_fn.data.demo import conversations, shakespeare
from slm_fn.pipeline.stages import demo_data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return demo_data.prepare_demo(tmp_path_factory.mktemp("prepared"))


def lines(path):
    return {
        conversations.normalize_line(m.content)
        for row in records.read_chat([path])
        for m in row.messages
    }


def test_held_out_plays_are_whole_and_apart(made):
    assert {d.name for d in made.held_out_plays} == set(shakespeare.HELD_OUT_PLAYS)
    assert len(made.plays) == 36
    for play in made.held_out_plays:
        assert all(
            play.text[i : i + 200] not in other.text
            for other in made.plays
            for i in (5000, 20000, 40000)
        )


def test_no_held_out_line_is_trained_on(made):
    held, trained = lines(made.held_out_chat), lines(made.chat)
    assert held
    assert not held & trained
    for row in records.read_pairs([made.pairs]):
        said = {
            conversations.normalize_line(m.content)
            for m in (*row.prompt, *row.chosen, *row.rejected)
        }
        assert not said & held


def test_trials_are_six_different_held_out_replies_each(made):
    trials = list(records.read_pairs([made.held_out_pairs]))
    rejected: dict[object, set[str]] = {}
    for row in trials:
        key = (row.prompt, row.chosen)
        rejected.setdefault(key, set()).add(conversations.normalize_line(row.rejected[-1].content))
        assert conversations.normalize_line(
            row.rejected[-1].content
        ) != conversations.normalize_line(row.chosen[-1].content)
    assert {len(others) for others in rejected.values()} == {demo_data.VAL_PAIRS_PER_REPLY}


def test_long_replies_are_left_out_of_training_and_counted(made):
    said = [
        m.content
        for row in records.read_chat([made.chat])
        for m in row.messages
        if m.role == "assistant"
    ]
    assert max(map(len, said)) <= demo_data.MAX_REPLY_CHARACTERS
    kept = sum(1 for _ in records.read_chat([made.chat]))
    whole = len(conversations.read_conversations().train)
    assert made.counts["train"] == kept == whole - made.counts["too_long"]
