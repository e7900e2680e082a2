"""Quantising a model folder: size, perplexity, a folder that loads, refusals."""

import json

import pytest
import torch

from slm_fn.core import tree
from slm_fn.data.io import documents
from slm_fn.lift.quant import Quant, QuantConfig
from slm_fn.pipeline import model_folder as models
from slm_fn.pipeline.stages import dpo, evaluate, quantize, sft
from slm_fn.pipeline.stages.pretrain import pretrain
from slm_fn.pipeline.training.stage import RunOptions
from slm_fn.train import checkpoint


@pytest.fixture(scope="module")
def trained(project, tmp_path_factory):
    run = tmp_path_factory.mktemp("quantize") / "run"
    pretrain(project.config, [project.pack], run, RunOptions("cpu"))
    return run


@pytest.mark.parametrize("bits", [8, 4])
def test_smaller_as_good_and_loaded_by_the_same_apply(project, trained, tmp_path, gap, bits):
    config, out = QuantConfig(bits=bits), tmp_path / "small"
    found = quantize.quantize(
        trained, config, out, documents=lambda: documents.read([project.text / "play-7.md"])
    )
    assert sorted(file.name for file in out.iterdir()) == [
        "config.json",
        "generation.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert json.loads((out / "config.json").read_bytes())["quant"] == {"bits": bits, "group": 32}
    assert found.perplexity_ratio == pytest.approx(1, abs=0.01 if bits == 8 else 0.05)
    assert found.error < (0.01 if bits == 8 else 0.1)

    again = evaluate.texts(
        models.load(out, dtype=torch.float32), documents.read([project.text / "play-7.md"])
    )
    assert again == found.quantized  # the folder is judged as it was before it was written

    small, original = (
        models.load(out, dtype=torch.float32),
        models.load(trained, dtype=torch.float32),
    )
    assert isinstance(small.params["embed"], Quant)
    tokens = torch.arange(10)[None]
    assert (
        gap(small.apply(small.params, tokens)[0], original.apply(original.params, tokens)[0]) < 0.2
    )
    quick = models.load(trained, dtype=torch.float32, quantize=config)  # at load: the same numbers
    assert tree.named_leaves(quick.params).keys() == tree.named_leaves(small.params).keys()
    assert all(
        torch.equal(a, b)
        for a, b in zip(tree.leaves(quick.params), tree.leaves(small.params), strict=True)
    )


def test_a_matrix_in_8_bits_is_half_of_bfloat16(config, rough, tmp_path):
    """Of a width that models have: names and scales weigh little there."""
    params = {
        "blocks": {"w": torch.randn(2, 512, 512)},
        "embed": torch.randn(4096, 512),
        "norm": torch.ones(512),
    }
    small = quantize.quant.quantize(params, QuantConfig(bits=8), lambda path: path == "blocks/w")
    checkpoint.save_tree(tmp_path / "w.safetensors", small)
    assert (tmp_path / "w.safetensors").stat().st_size <= 0.55 * 2 * tree.num_elements(params)


def test_averaged_weights_are_taken_unless_raw(trained, tmp_path):
    averaged, raw = (
        models.load(trained, dtype=torch.float32, raw=flag).params["norm"] for flag in (False, True)
    )
    assert not torch.equal(averaged, raw)
    for flag, want in ((False, averaged), (True, raw)):
        quantize.quantize(trained, QuantConfig(), tmp_path / str(flag), raw=flag)
        assert torch.equal(
            models.load(tmp_path / str(flag), dtype=torch.float32).params["norm"], want
        )


def test_refusals(project, trained, tmp_path):
    quantize.quantize(trained, QuantConfig(), tmp_path / "small")
    with pytest.raises(ValueError, match="quantised already"):
        quantize.quantize(tmp_path / "small", QuantConfig(), tmp_path / "smaller")
    for stage in (sft.sft, dpo.dpo):
        with pytest.raises(ValueError, match="small: quantised weights cannot be trained"):
            stage(
                project.config, tmp_path / "small", [], tmp_path / "run", options=RunOptions("cpu")
            )
    with pytest.raises(ValueError, match="8 bits already"):
        models.load(tmp_path / "small", quantize=QuantConfig(bits=4))
    with pytest.raises(ValueError, match="the original itself"):
        quantize.quantize(trained, QuantConfig(), models.locate(trained))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        quantize.quantize(trained, QuantConfig(), tmp_path / "mine")
    with pytest.raises(ValueError, match="--group"):
        quantize.quantize(trained, QuantConfig(bits=4, group=48), tmp_path / "odd")
    assert not (tmp_path / "odd").exists()
