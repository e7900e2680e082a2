"""pipeline/draft.py and `slm sample --speculate`.

The same words, sooner; other tokens are refused.
"""

import json

import pytest
from click.testing import CliRunner

from slm_fn.cli.models.sample import command as sample
from slm_fn.infer.sampling import SampleConfig
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import model_folder as models
from slm_fn.pipeline.generation import generate, speculative
from slm_fn.pipeline.model_folder import GenerationConfig
from slm_fn.text.training import bpe
from slm_fn.train import checkpoint

TEXT = "to be or not to be, that is the question"
GREEDY = SampleConfig(temperature=0.0)


def write_model(place, rough, vocab_size=280, dim=16, key=0):
    tokenizer = bpe.train([TEXT] * 3, vocab_size=vocab_size)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=dim,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        ffn_dim=32,
        context=96,
    )
    place.mkdir()
    for name, data in models.metadata_files(config, tokenizer, GenerationConfig()).items():
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
def test_the_same_deltas_in_fewer_passes(folders, how):
    model = models.load(folders["large"], "cpu")
    drafter = speculative.load_drafter(model, str(folders.get(how, how)))
    ids = generate.encode_text(model, TEXT)
    request = generate.make_request(model, ids, GREEDY, 0, 40)
    plain = list(generate.stream_text(model, request))
    stats = []
    deltas = speculative.stream_text(model, drafter, request, on_pass=stats.append)
    assert list(deltas) == plain
    unlimited = generate.make_request(model, ids, GREEDY, 0)
    deltas = speculative.stream_text(model, drafter, unlimited)
    assert len(list(deltas)) <= model.config.context - len(ids) + 1
    if how == "large":
        assert stats[-1].acceptance == 1
        assert stats[-1].tokens_per_pass > 3


def test_a_draft_model_in_other_tokens_is_refused(folders):
    with pytest.raises(
        ValueError, match="foreign: has another tokenizer; a draft model needs the same one"
    ):
        speculative.load_drafter(models.load(folders["large"], "cpu"), str(folders["foreign"]))
    with pytest.raises(FileNotFoundError, match="no such model"):
        speculative.load_drafter(models.load(folders["large"], "cpu"), "nowhere")


def test_sample_reports_how_many_draft_tokens_were_accepted(folders):
    def run(*args):
        told = [
            str(folders["large"]),
            "--prompt",
            TEXT,
            "--max-tokens",
            "30",
            "--device",
            "cpu",
            "--json",
            *args,
        ]
        done = CliRunner().invoke(sample, told, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)["samples"][0], done.stderr

    plain, nothing = run("--seed", "4")
    found, note = run("--seed", "4", "--speculate", "ngram")
    figures = found.pop("speculation")
    assert found == plain
    assert nothing == ""
    assert f"{figures['acceptance']:.0%} of {figures['drafted']} draft tokens accepted" in note
    best, _ = run("--greedy", "--speculate", str(folders["large"]))
    assert best["speculation"]["acceptance"] == 1
    assert best["text"] == run("--greedy")[0]["text"]
