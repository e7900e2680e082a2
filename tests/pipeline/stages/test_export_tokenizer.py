"""pipeline/export.py: found wherever a tokenizer lies, written whole or not at all."""

import msgspec
import pytest

from slm_fn.pipeline import model_folder as models
from slm_fn.pipeline.model_folder import GenerationConfig
from slm_fn.pipeline.stages.export_tokenizer import export_tokenizer
from slm_fn.pipeline.tokenizer_source import load_tokenizer
from slm_fn.text.chat_template import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe


@pytest.fixture
def model_folder(project, tmp_path):
    config = msgspec.structs.replace(project.config.model, vocab_size=320)
    tokenizer = Tokenizer.load(project.tokenizer)
    swapped = GenerationConfig(template=ChatTemplate(user="<|system|>", system="<|user|>"))
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in models.metadata_files(config, tokenizer, swapped).items():
        (folder / name).write_bytes(data)
    return folder


def test_a_tokenizer_is_found_in_files_and_folders(project, model_folder):
    ours = Tokenizer.load(project.tokenizer)
    assert (
        load_tokenizer(project.tokenizer)
        == load_tokenizer(project.pack)
        == (ours, ChatTemplate(), None)
    )
    found = load_tokenizer(model_folder)
    assert found.tokenizer == ours
    assert found.template == ChatTemplate(user="<|system|>", system="<|user|>")
    assert found.context == project.config.model.context


def test_a_tokenizer_without_roles_has_no_template(tmp_path):
    bpe.train(["to be"], 300, special_tokens=["<|endoftext|>"]).save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).template is None
    assert set(export_tokenizer(tmp_path, "hf", tmp_path / "hf").files) == {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    }  # fmt: skip


@pytest.mark.parametrize("to", ["tiktoken", "hf"])
def test_an_export_is_what_the_printed_lines_load(project, tmp_path, to):
    made = export_tokenizer(project.pack, to, tmp_path / "out")
    assert sorted(file.name for file in made.out.iterdir()) == sorted(made.files)
    ours, text = Tokenizer.load(project.tokenizer), "the king and a fool <|end|>"
    if to == "tiktoken":
        scope = {}
        exec(made.how, scope)  # what a user is told to type
        assert scope["encoding"].encode_ordinary(text) == ours.encode(text)
    else:
        assert Tokenizer.load(made.out / "tokenizer.json").encode(text) == ours.encode(text)
        assert f'from_pretrained("{made.out}")' in made.how


def test_a_model_s_own_template_and_context_are_exported(model_folder, tmp_path):
    export_tokenizer(model_folder, "hf", tmp_path / "out")
    said = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert "== 'user' %}{{ '<|system|>' }}" in said
    assert '"model_max_length": 64' in (tmp_path / "out" / "tokenizer_config.json").read_text()


def test_an_older_export_is_replaced_and_nothing_else(project, tmp_path):
    out = tmp_path / "out"
    export_tokenizer(project.tokenizer, "hf", out)
    (out / "chat_template.jinja").write_text("old")
    export_tokenizer(project.tokenizer, "hf", out)
    assert (out / "chat_template.jinja").read_text() != "old"
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files \(thesis.txt\)"):
        export_tokenizer(project.tokenizer, "hf", out)
    with pytest.raises(ValueError, match="is a file; an export is a folder"):
        export_tokenizer(project.tokenizer, "hf", out / "thesis.txt")
    assert (out / "thesis.txt").read_text() == "mine"


def test_what_is_refused_leaves_nothing(project, tmp_path):
    text = project.tokenizer.read_text(encoding="utf-8")
    (tmp_path / "odd.json").write_text(
        text.replace('"normalizer": null', '"normalizer": {"type": "NFC"}')
    )
    with pytest.raises(ValueError, match="no exact form in tiktoken"):
        export_tokenizer(tmp_path / "odd.json", "tiktoken", tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["odd.json"]


def test_no_tokenizer_is_said(project, tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="neither a model folder"):
        load_tokenizer(project.text)
