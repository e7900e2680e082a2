"""pipeline/pretrain.py: several packs by weight, documents isolated, and what cannot be mixed."""

import json

import pytest
from tiny_project import SMALL

from slm_fn import config as configs
from slm_fn.config import Config
from slm_fn.data.batches import mix
from slm_fn.data.pack import dataset as packs
from slm_fn.pipeline.stages.pretrain import pretrain
from slm_fn.pipeline.training.stage import RunOptions


def test_several_packs_are_trained_on_and_resumed(project, two_packs, tmp_path):
    done = pretrain(
        project.config, two_packs, tmp_path / "mixed", RunOptions("cpu", live=False), weights=[3, 1]
    )
    assert done.metrics["val_loss"] > 0
    assert done.metrics["val_bits_per_byte"] > 0
    told = json.loads((tmp_path / "mixed" / "run.json").read_text())
    assert (
        told["data_hash"] == mix.mix([packs.open_pack(path) for path in two_packs], [3, 1]).digest
    )
    with pytest.raises(ValueError, match="other data"):
        pretrain(
            project.config,
            two_packs,
            tmp_path / "mixed",
            RunOptions("cpu", live=False),
            weights=[1, 1],
        )


def test_documents_are_isolated_when_asked(project, two_packs, tmp_path):
    isolated = configs.convert(
        {**SMALL, "pretrain": {**SMALL["pretrain"], "isolate_documents": True}}, "", Config
    )
    losses = [
        pretrain(config, two_packs[0], tmp_path / name, RunOptions("cpu", live=False)).metrics[
            "val_loss"
        ]
        for name, config in (("whole", project.config), ("isolated", isolated))
    ]
    assert losses[0] != losses[1]
