"""pipeline/draft.py and `slm sample --speculate`: the same words, sooner; other tokens are refused."""

import json

import pytest
from click.testing import CliRunner

from slm_fn.cli.sample import command as sample
from slm_fn.infer.sample import SampleConfig
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import draft, talk
from slm_fn.pipeline import model as models
from slm_fn.pipeline.model import Generation
from slm_fn.text import bpe
from slm_fn.train import checkpoint

TEXT = "to be or not to be, that is the question"
GREEDY = SampleConfig(temperature=0.0)


def write_model(place, rough, vocab_size=280, dim=16, key=0):
    tokenizer = bpe.train([TEXT] * 3, vocab_size=vocab_size)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=dim, num_layers=1, num_heads=2, num_kv_heads=1, ffn_dim=32, context=96
    )
    place.mkdir()
    for name, data in models.describe(config, tokenizer, Generation()).items():
        (place / name).write_bytes(data)
    checkpoint.save_tree(place / checkpoint.WEIGHTS, rough(config, key))
    return place


@pytest.fixture(scope="module")
def folders(tmp_path_factory, rough):
    root = tmp_path_factory.mktemp("draft")
    return {
        "large": write_model(root / "large", rough),
        "small": write_model(root / "small", rough, dim=8, key=5),
        "foreign": write_model(root / "foreign", rough, vocab_size=262),
    }


@pytest.mark.parametrize("how", ["ngram", "small", "large"])
def test_the_same_pieces_sooner(folders, how):
    model = models.load(folders["large"], "cpu")
    drafter, seen = draft.drafter(model, str(folders.get(how, how))), []
    ids = talk.text_ids(model, TEXT)
    plain = list(talk.write(model, ids, GREEDY, 0, 40))
    assert list(draft.write(model, drafter, ids, GREEDY, 0, 40, watch=seen.append)) == plain
    assert len(list(draft.write(model, drafter, ids, GREEDY, 0))) <= model.config.context - len(ids) + 1
    if how == "large":
        assert seen[-1].acceptance == 1
        assert seen[-1].tokens_per_pass > 3


def test_a_draft_model_in_other_tokens_is_refused(folders):
    with pytest.raises(ValueError, match="foreign: has another tokenizer; a draft model needs the same one"):
        draft.drafter(models.load(folders["large"], "cpu"), str(folders["foreign"]))
    with pytest.raises(FileNotFoundError, match="no such model"):
        draft.drafter(models.load(folders["large"], "cpu"), "nowhere")


def test_sample_tells_how_many_guesses_were_right(folders):
    def run(*args):
        told = [str(folders["large"]), "--prompt", TEXT, "--max-tokens", "30", "--device", "cpu", "--json", *args]
        done = CliRunner().invoke(sample, told, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)["samples"][0], done.stderr

    plain, nothing = run("--seed", "4")
    found, note = run("--seed", "4", "--speculate", "ngram")
    figures = found.pop("speculation")
    assert found == plain
    assert nothing == ""
    assert f"{figures['acceptance']:.0%} of {figures['drafted']} guesses accepted" in note
    best, _ = run("--greedy", "--speculate", str(folders["large"]))
    assert best["speculation"]["acceptance"] == 1
    assert best["text"] == run("--greedy")[0]["text"]
