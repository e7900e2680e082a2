"""pipeline: sft, dpo, the model folder, evaluate and inspect, on a small project."""

import math

import msgspec
import pytest
import torch

from slm_fn import config as configs
from slm_fn.core import tree
from slm_fn.data.chat import records
from slm_fn.data.corpus.config import CorpusConfig
from slm_fn.data.io import documents
from slm_fn.pipeline import model_folder
from slm_fn.pipeline.stages import dpo, evaluate, prepare, pretrain, sft
from slm_fn.pipeline.training import finetune
from slm_fn.pipeline.training.stage import RunOptions
from slm_fn.text import chat_template
from slm_fn.text.messages import Message
from slm_fn.train import checkpoint, run_log


@pytest.fixture(scope="module")
def walked(project, tmp_path_factory):
    out = tmp_path_factory.mktemp("walked")
    first = pretrain.pretrain(
        project.config, project.pack, out / "pretrain", RunOptions("cpu", live=False)
    )
    tuned = sft.sft(
        project.config,
        first.checkpoint,
        [project.chat],
        out / "sft",
        [project.chat],
        RunOptions("cpu", live=False),
    )
    last = dpo.dpo(
        project.config,
        tuned.checkpoint,
        [project.pairs],
        out / "dpo",
        [project.pairs],
        RunOptions("cpu", live=False),
    )
    return out, first, tuned, last


def test_each_stage_starts_from_the_one_before_and_moves(walked):
    _, first, tuned, last = walked
    names = [first.checkpoint, tuned.checkpoint, last.checkpoint]
    params = [model_folder.load(place, "cpu", dtype=torch.float32).params for place in names]
    assert not torch.equal(params[0]["embed"], params[1]["embed"])
    assert not torch.equal(params[1]["embed"], params[2]["embed"])
    assert tuned.metrics["val_loss"] < math.log(320)
    assert 0 <= last.metrics["preference_accuracy"] <= 1
    assert last.metrics["preference_pairs"] == 18


def test_dpo_begins_at_ln_2(walked):
    row = run_log.read_rows(walked[0] / "dpo" / run_log.METRICS)[0]
    assert row["step"] == 2  # one step of warm-up has been taken
    assert row["train_loss"] == pytest.approx(math.log(2), abs=0.02)


def test_the_reference_is_the_model_dpo_started_from(project, walked):
    start = model_folder.load(walked[2].checkpoint, "cpu", dtype=torch.float32)
    examples = dpo.encode_pairs(start, list(records.read_pairs([project.pairs])), print)
    judged = dpo.evaluate(start.apply, start.params, examples, 1)
    assert judged.accuracy == pytest.approx(0.5, abs=0.2)
    assert judged.chosen_change_nats_per_token == pytest.approx(0, abs=1e-5)


def test_a_path_names_a_model_a_run_or_a_checkpoint(walked, tmp_path):
    out, first, *_ = walked
    assert (
        model_folder.locate(out / "pretrain")
        == first.checkpoint
        == model_folder.locate(first.checkpoint)
    )
    with pytest.raises(FileNotFoundError, match="no such"):
        model_folder.locate(tmp_path / "nothing")
    with pytest.raises(ValueError, match="neither"):
        model_folder.locate(tmp_path)


def test_averaged_weights_are_taken_unless_raw(walked):
    place = walked[1].checkpoint
    mean, raw = (
        model_folder.load(place, "cpu", raw, torch.float32).params for raw in (False, True)
    )
    assert not torch.equal(mean["embed"], raw["embed"])


def test_a_truncated_checkpoint_is_one_clear_line(walked, tmp_path):
    import shutil

    place = shutil.copytree(walked[1].checkpoint, tmp_path / "broken")
    weights = place / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"model.safetensors: missing, truncated or changed"
    ) as error:
        model_folder.load(place)
    assert "\n" not in str(error.value)


def test_a_foreign_tokenizer_is_refused(project, walked, tmp_path):
    import shutil

    place = shutil.copytree(walked[1].checkpoint, tmp_path / "foreign")
    (place / checkpoint.STATE).unlink()
    told = msgspec.json.decode((place / model_folder.CONFIG).read_bytes())
    (place / model_folder.CONFIG).write_bytes(
        msgspec.json.encode({**told, "tokenizer_fingerprint": "0" * 64})
    )
    with pytest.raises(ValueError, match="not the tokenizer"):
        model_folder.load(place)


def test_training_and_serving_render_the_same_ids(project, walked):
    talker = model_folder.load(walked[2].checkpoint, "cpu")
    row = next(iter(records.read_chat([project.chat])))
    trained = sft.encode_conversations(talker, [row], print)[0]
    served = chat_template.render(
        talker.generation.template,
        talker.tokenizer,
        [Message("user", row.messages[0].content)],
        add_generation_prompt=True,
    ).ids
    assert list(trained.ids[: len(served)]) == served
    assert list(trained.mask[: len(served)]) == [0] * len(served)


def test_a_pair_trains_its_answers_alone(project, walked):
    talker = model_folder.load(walked[2].checkpoint, "cpu", dtype=torch.float32)
    said = [
        Message(role, text) for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))
    ]
    one, other = ((Message("assistant", text),) for text in ("yes my lord", "no"))
    (pair,) = dpo.encode_pairs(talker, [records.PreferencePair(tuple(said), one, other)], print)
    for side, text in ((pair.chosen, "yes my lord"), (pair.rejected, "no")):
        trained = [i for i, counted in zip(side.ids, side.mask, strict=True) if counted]
        assert talker.tokenizer.decode(trained) == text
        assert trained[-1] == talker.tokenizer.special_id("<|end|>")


def test_packed_rows_are_fewer_and_the_figures_are_told(project, walked, tmp_path):
    notes = []

    def tune(name, *overrides):
        config = configs.load(project.config_file, overrides)
        start = walked[1].checkpoint
        return sft.sft(
            config,
            start,
            [project.chat],
            tmp_path / name,
            [project.chat],
            RunOptions("cpu", live=False),
            note=notes.append,
        )

    done = tune("packed")
    before, after = notes
    tune("alone", "sft.pack_rows=false")
    assert notes[2:] == [before]
    assert before.startswith("18 rows, ")
    assert "18 replies" in before
    assert after.startswith("packed: ")
    assert int(after.split()[1]) == 9
    assert "18 replies" in after
    per_row = [
        row["tokens"] / row["step"]
        for row in run_log.read_rows(tmp_path / "packed" / run_log.METRICS)
        if "tokens" in row
    ]
    alone = [
        row["tokens"] / row["step"]
        for row in run_log.read_rows(tmp_path / "alone" / run_log.METRICS)
        if "tokens" in row
    ]
    assert min(per_row) > 1.5 * max(alone)
    assert done.metrics["val_loss"] < math.log(320)


def test_bits_per_byte_is_nats_over_bytes(project, walked):
    found = evaluate.texts(
        model_folder.load(walked[1].checkpoint, "cpu", dtype=torch.float32),
        documents.read([project.text]),
    )
    size = sum(p.stat().st_size for p in project.text.iterdir())
    assert found.num_bytes == size
    assert found.bits_per_byte == pytest.approx(found.loss_nats * found.tokens / math.log(2) / size)
    assert found.documents == 8


def test_replies_are_counted(project, walked):
    talker = model_folder.load(walked[2].checkpoint, "cpu", dtype=torch.float32)
    found = evaluate.replies(talker, ["who is a fool?", "who is my lord?"], (0, 1), 16)
    assert found.replies == 4
    assert 0 <= found.ended <= 1
    again = evaluate.replies(talker, ["who is a fool?", "who is my lord?"], (0, 1), 16)
    assert found == again


def test_too_many_useless_conversations_are_an_error(project, walked):
    talker = model_folder.load(walked[1].checkpoint, "cpu")
    row = next(iter(records.read_chat([project.chat])))
    long = msgspec.structs.replace(
        row, messages=(row.messages[0], type(row.messages[1])("assistant", "word " * 500))
    )
    with pytest.raises(ValueError, match="nothing to learn"):
        sft.encode_conversations(talker, [long], print)


def test_a_split_keeps_prompts_apart(project):
    rows = list(records.read_chat([project.chat]))
    train, held = finetune.split_by_prompt(rows, 0.6, lambda row: row.messages)
    assert train
    assert held
    prompts = [{row.messages[0].content for row in part} for part in (train, held)]
    assert not prompts[0] & prompts[1]


def test_public_layouts_become_what_sft_and_dpo_read(walked, tmp_path):
    def write(name, rows):
        (tmp_path / name).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        return str(tmp_path / name)

    share = [
        [("human", "Who rules?"), ("gpt", reply)]
        for reply in ("The king.", "As an AI, I cannot say.", "")
    ]
    root = {
        "message_id": "p",
        "message_tree_id": "p",
        "role": "prompter",
        "text": "Who is a fool?",
        "lang": "en",
    }
    said = [("He is.", 0), ("No more.", 1), ("A night.", 2)]
    tree = [
        root,
        *(
            {**root, "message_id": t, "parent_id": "p", "role": "assistant", "text": t, "rank": r}
            for t, r in said
        ),
    ]
    corpus = {
        "share": {
            "path": write(
                "share.jsonl",
                [{"conversations": [{"from": a, "value": b} for a, b in r]} for r in share],
            ),
            "kind": "chat",
            "filters": ["turns", "refusals"],
        },
        "ranked": {"path": write("tree.jsonl", tree), "kind": "pairs", "languages": ["en"]},
    }
    notes = []
    config = msgspec.convert({"sources": corpus}, CorpusConfig)
    share, ranked = prepare.prepare(
        config, tmp_path / "out", prepare.PrepareDisplay(notes.append)
    ).sources
    assert (share.counts.kept, share.counts.removed) == (1, {"refusals": 1})
    assert share.counts.dropped == {"an empty turn": 1}
    assert ranked.counts.kept == 2
    (talk,) = records.read_chat([tmp_path / "out" / "share"], chat_template.check_messages)
    assert [message.content for message in talk.messages] == ["Who rules?", "The king."]
    pairs = list(records.read_pairs([tmp_path / "out" / "ranked"], chat_template.check_messages))
    assert [pair.rejected[0].content for pair in pairs] == ["No more.", "A night."]
    assert (
        len(
            dpo.encode_pairs(
                model_folder.load(walked[2].checkpoint, "cpu", dtype=torch.float32), pairs, print
            )
        )
        == 2
    )


def test_weights_survive_the_folder(walked, same):
    place = walked[1].checkpoint
    loaded = model_folder.load(place, "cpu", True, torch.float32)
    assert same(
        checkpoint.load_weights(place, tree.map(torch.zeros_like, loaded.params), True),
        loaded.params,
    )
