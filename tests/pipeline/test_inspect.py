"""pipeline/inspect.py: a path tells itself what it holds, and the figures are those of the data."""

import gzip
import json
from pathlib import Path

import msgspec
import pytest

from slm_fn.data import pack as packs
from slm_fn.data import sources
from slm_fn.data.corpus import CorpusConfig, SourceConfig
from slm_fn.pipeline.inspect import inspect, kind_of
from slm_fn.pipeline.prepare import Watch, prepare
from slm_fn.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def corpus(road, tmp_path_factory):
    """A prepared corpus of two sources: plays, of which one stands there twice, and conversations."""
    out = tmp_path_factory.mktemp("corpus")
    texts = out / "raw"
    texts.mkdir()
    for play in road.text.iterdir():
        (texts / play.name).write_bytes(play.read_bytes())
    (texts / "again.md").write_bytes((road.text / "play-0.md").read_bytes())
    config = CorpusConfig(
        sources={
            "plays": SourceConfig(path=str(texts)),
            "talk": SourceConfig(path=str(road.chat), kind="chat"),
        }
    )
    prepare(config, out / "made", Watch(lambda line: None))
    return out / "made"


def test_a_path_tells_what_it_holds(road, corpus, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "broken.jsonl").write_text("{\n")
    (tmp_path / "chat.jsonl.gz").write_bytes(gzip.compress(road.chat.read_bytes()))
    kinds = {
        road.pack: "pack", corpus: "prepared", corpus / "plays": "prepared", road.text: "text", road.chat: "chat",
        road.pairs: "pairs", tmp_path / "texts.jsonl": "text", tmp_path / "broken.jsonl": "text",
        tmp_path / "chat.jsonl.gz": "chat",
    }  # fmt: skip
    assert {path: kind_of(path) for path in kinds} == kinds
    with pytest.raises(FileNotFoundError, match="no file or folder at nowhere"):
        inspect(Path("nowhere"))


def test_a_pack_s_documents_are_measured_by_their_boundaries(road):
    seen = inspect(road.pack, num=2)
    ours = Tokenizer.load(road.tokenizer)
    sizes = sorted(1 + len(ours.encode(d.text)) for d in sources.read([road.text]) if d.name != "play-7.md")
    found = seen.lengths["train: document"]
    assert (found.count, found.total, found.shortest, found.longest) == (7, sum(sizes), sizes[0], sizes[-1])
    assert seen.figures["val: boundaries found"] == 1
    info = packs.open_pack(road.pack).info
    assert seen.figures["train: share of tokens"] == round(
        info.splits["train"].tokens / sum(split.tokens for split in info.splits.values()), 4
    )
    assert [sample["split"] for sample in seen.samples] == ["train", "train", "val", "val"]
    assert seen.panels[0].title == "Length of 8 documents"
    msgspec.json.encode([seen.figures, seen.samples, seen.lengths])


def test_a_pack_over_many_shards_has_the_same_documents(road, tmp_path, monkeypatch):
    from slm_fn.pipeline import inspect as module
    from slm_fn.pipeline.pack import PackConfig, pack_documents

    ours = Tokenizer.load(road.tokenizer)
    config = PackConfig(seq_len=64, shard_size=100, val_fraction=0.0, val_names=("play-7.md",))
    pack_documents(config, ours, sources.read([road.text]), tmp_path / "pack")
    monkeypatch.setattr(module, "CHUNK", 7)
    assert inspect(tmp_path / "pack").lengths == inspect(road.pack).lengths


def test_a_prepared_corpus_tells_what_was_removed(corpus):
    seen = inspect(corpus, num=1)
    assert seen.kind == "prepared"
    assert seen.figures["plays: status"] == "finished"
    assert (seen.figures["plays: documents read"], seen.figures["plays: documents kept"]) == (9, 6)
    assert seen.figures["plays: removed, duplicate: exact"] == 3  # two of the plays are alike
    assert seen.lengths["plays: document"].count == 6
    assert seen.lengths["talk: document"].count == 6  # each was there three times
    assert {sample["source"] for sample in seen.samples} == {"plays", "talk"}
    assert "the king" in seen.samples[0]["text"]
    assert [panel.title for panel in seen.panels] == ["Length of 12 documents", "Removed or repaired, by reason"]
    assert inspect(corpus / "plays").lengths == {"plays: document": seen.lengths["plays: document"]}


def test_prepared_pairs_show_what_is_said(road, tmp_path):
    wanted = CorpusConfig(sources={"pairs": SourceConfig(path=str(road.pairs), kind="pairs")})
    prepare(wanted, tmp_path / "made", Watch(print))
    seen = inspect(tmp_path / "made", num=1)
    first = next(sources.read_pairs([road.pairs]))
    said = [message.content for part in (first.prompt, first.chosen, first.rejected) for message in part]
    assert seen.samples == [{"source": "pairs", "text": "\n".join(said)}]


def test_looking_changes_nothing(corpus, tmp_path):
    import shutil

    made = shutil.copytree(corpus, tmp_path / "made")
    (made / "plays" / ".tmp-other-writer").write_text("at work")
    (made / "plays" / "state.json").write_bytes(b"{}")
    before = {file: file.read_bytes() for file in made.rglob("*") if file.is_file()}
    inspect(made)
    assert {file: file.read_bytes() for file in made.rglob("*") if file.is_file()} == before


def test_an_altered_part_is_said(corpus, tmp_path):
    import shutil

    made = shutil.copytree(corpus, tmp_path / "made")
    part = made / "plays" / "part_00000.jsonl"
    part.write_bytes(part.read_bytes().replace(b"king", b"knig"))
    with pytest.raises(ValueError, match=r"part_00000.jsonl has another checksum"):
        inspect(made)


def test_texts_are_counted_and_what_is_broken_is_told(road, tmp_path):
    (tmp_path / "one.md").write_text("to be\nor not\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "né"}\n{"te\n{"text": "last"}\n')
    seen = inspect(tmp_path, num=2, tokenizer=road.tokenizer)
    told = seen.figures
    assert (told["documents"], told["bytes"], told["characters"], told["lines"]) == (3, 20, 19, 2)
    assert told["problems"] == 1
    assert "rows.jsonl, line 2" in told["first_problems"][0]
    assert told["round_trip"]
    assert told["bytes_per_token"] == round(20 / told["tokens"], 3)
    assert [sample["text"] for sample in seen.samples] == ["to be\nor not\n", "né"]
    assert len(seen.panels) == 3
    assert len(inspect(tmp_path).panels) == 1


def test_conversations_are_measured_and_coloured(road):
    seen = inspect(road.chat, num=1, tokenizer=road.pack)
    assert seen.figures["conversation: examples"] == 18
    sample = seen.samples[0]
    said = "".join(token["text"] for token in sample["tokens"] if token["trained"])
    assert said == "the king is here.<|end|>"
    whole = "".join(token["text"] for token in sample["tokens"])
    assert whole == f"<|endoftext|><|user|>who is the king?<|end|><|assistant|>{said}"
    assert sample["trained"] == sum(token["trained"] for token in sample["tokens"])
    assert seen.lengths["conversation"].count == 18
    with pytest.raises(ValueError, match="name a tokenizer with --tokenizer"):
        inspect(road.chat)


def test_pairs_show_both_answers(road):
    seen = inspect(road.pairs, num=1, tokenizer=road.tokenizer)
    assert [sample["name"] for sample in seen.samples] == ["chosen", "rejected"]
    assert seen.figures["chosen: examples"] == seen.figures["rejected: examples"] == 18
    assert seen.samples[0]["tokens"] != seen.samples[1]["tokens"]


def test_a_bad_conversation_is_named(road, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "assistant", "content": "b"}]}]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"chat.jsonl, line 2: .*begins with the user"):
        inspect(tmp_path / "chat.jsonl", tokenizer=road.tokenizer)


def test_the_parts_of_a_long_text_are_one_document(tmp_path):
    (tmp_path / "long.md").write_text("a line of it\n" * 100_000)
    seen = inspect(tmp_path, num=3)
    assert len(list(sources.read([tmp_path]))) == 2  # it comes in parts
    assert (seen.figures["documents"], seen.lengths["document"].longest) == (1, 1_300_000)
    assert len(seen.samples) == 1
