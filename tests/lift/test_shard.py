"""lift/shard.py: two processes compute what one does, whatever rows each has."""

import json
from pathlib import Path

import pytest
import torchrun
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard

from slm_fn.lift import shard
from slm_fn.nn import gpt

SCRIPT = Path(__file__).parent / "ranks.py"
LAWS = [
    *(
        f"{how} {case}"
        for how in ("replicate", "fsdp")
        for case in ("adamw 3", "muon 2", "muon 1", "no rows")
    ),
    *("dpo", "dpo no rows"),
    *(f"tensor parallel {case}" for case in ("plain", "tied", "muon")),
]


class Mesh(DeviceMesh):
    """A mesh of a given size without processes: placements need no more."""

    def __init__(self, size):
        self.num_processes = size

    def size(self, mesh_dim=None):
        return self.num_processes


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "figures.json"
    torchrun.run(2, SCRIPT, out)
    return json.loads(out.read_text())


@pytest.mark.parametrize("law", LAWS)
def test_two_processes_are_one(two, law):
    assert two[law] < 1e-5


def test_no_law_is_left_out(two):
    assert two.keys() == {*LAWS, "saved", "share held"}


def test_a_sharded_state_is_saved_whole_and_loads_whole_or_sharded(two):
    assert two["saved"] == 0.0


def test_a_process_holds_its_share(two):
    assert two["share held"] < 0.51


@pytest.mark.slow
def test_two_pairs_of_processes_are_one(tmp_path):
    out = tmp_path / "figures.json"
    torchrun.run(4, SCRIPT, out)
    assert json.loads(out.read_text())["data and tensor parallel"] < 1e-5


def test_leaves_are_cut_by_layers_while_there_are_enough():
    config = gpt.ModelConfig(vocab_size=65, dim=32, num_layers=3, ffn_dim=64)
    params = gpt.init(config, 0)
    few, many = shard.zero_placements(params, Mesh(2)), shard.zero_placements(params, Mesh(4))
    assert few["blocks"]["attn"]["q"] == (Shard(0),)
    assert many["blocks"]["ffn"]["up"] == (Shard(1),)
    assert many["blocks"]["ffn"]["down"] == (Shard(2),)
    assert many["embed"] == many["norm"] == (Shard(0),)


def test_heads_and_hidden_units_are_dealt_out():
    config = gpt.ModelConfig(
        vocab_size=65, dim=32, num_layers=2, ffn_dim=64, biases="all", norm="layer", qk_norm=True
    )
    placements = shard.tensor_parallel(config, Mesh(2))
    attn, ffn = placements["blocks"]["attn"], placements["blocks"]["ffn"]
    assert all(attn[name] == (Shard(1),) for name in ("q", "k", "v", "q_bias", "k_bias", "v_bias"))
    assert attn["o"] == ffn["down"] == (Shard(2),)
    assert ffn["gate"] == ffn["up"] == ffn["up_bias"] == (Shard(1),)
    kept = [
        placements["embed"],
        placements["norm"],
        attn["o_bias"],
        attn["q_norm"],
        ffn["down_bias"],
    ]
    assert all(where == (Replicate(),) for where in kept)


@pytest.mark.parametrize("field", ["num_heads", "num_kv_heads", "ffn_dim"])
def test_heads_that_do_not_divide_are_refused(field):
    shape = {"num_heads": 12, "num_kv_heads": 12, "ffn_dim": 48, "dim": 48}
    changes = {
        "num_heads": {"num_heads": 8, "num_kv_heads": 4},
        "num_kv_heads": {"num_kv_heads": 4},
    }
    config = gpt.ModelConfig(vocab_size=65, **{**shape, **changes.get(field, {"ffn_dim": 50})})
    with pytest.raises(ValueError, match=f"model.{field} .* does not divide among 6 processes"):
        shard.tensor_parallel(config, Mesh(6))
