"""train/checkpoint.py: restored bit for bit, broken ones refused, old ones dropped."""

import msgspec
import pytest
import torch

from slm_fn.core import tree
from slm_fn.nn import gpt
from slm_fn.optim import recipes
from slm_fn.train import checkpoint
from slm_fn.train.step import init_state

INFO = checkpoint.CheckpointInfo(
    step=0,
    position=0,
    seed=0,
    tokens=0,
    seconds=0.0,
    num_threads=1,
    processor="p",
    torch="t",
    config_hash="c",
    data_hash="d",
)


@pytest.fixture
def state(config, rough):
    tx = recipes.make_optimizer(
        recipes.OptimConfig(name="muon", ema_decay=0.9), 10, gpt.matrix_paths(config).__contains__
    )
    return init_state(rough(config), tx)


def at(step, **changes):
    return msgspec.structs.replace(INFO, step=step, position=step, **changes)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path, state, same):
    place = checkpoint.save(tmp_path, state, at(3), {"config.json": b"{}"}, keep=2)
    blank = tree.map(torch.zeros_like, state)
    loaded, info = checkpoint.load(place, blank)
    assert same(loaded, state)
    assert (info.step, info.position) == (3, 3)
    assert (place.parent / "latest").read_text() == place.name


def test_averaged_weights_lie_beside_and_are_preferred(tmp_path, state, same):
    moved = state._replace(params=tree.map(lambda x: x + 1, state.params))
    place = checkpoint.save(tmp_path, moved, at(1), {}, keep=1)
    assert same(checkpoint.load_weights(place, state.params), state.params)
    assert same(checkpoint.load_weights(place, state.params, raw=True), moved.params)


def test_loaded_tensors_own_aligned_memory(tmp_path, state):
    loaded, _ = checkpoint.load(checkpoint.save(tmp_path, state, at(1), {}, keep=1), state)
    assert all(leaf.data_ptr() % 16 == 0 for leaf in tree.leaves(loaded) if leaf.numel() > 1)


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.TRAIN_STATE, checkpoint.STATE])
@pytest.mark.parametrize("harm", ["truncate", "flip", "delete"])
def test_a_broken_checkpoint_is_passed_over(tmp_path, state, name, harm):
    good = checkpoint.save(tmp_path, state, at(1), {}, keep=3)
    file = checkpoint.save(tmp_path, state, at(2), {}, keep=3) / name
    data = bytearray(file.read_bytes())
    if harm == "delete":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data[: len(data) // 2] if harm == "truncate" else data)
    found, passed = checkpoint.find_newest(tmp_path)
    if (
        name == checkpoint.STATE and harm == "flip"
    ):  # a flipped digit may still be a whole, truthful file
        assert found is not None
        return
    assert found == good
    assert len(passed) == 1
    assert "step-00000002" in passed[0]


def test_old_ones_go_and_the_best_stays(tmp_path, state):
    for step in range(1, 6):
        best = 1.0 if step == 2 else None
        metrics = {"val_loss": 1.0 if step == 2 else 2.0}
        checkpoint.save(
            tmp_path, state, at(step, best_val_loss=best or 1.0, metrics=metrics), {}, keep=2
        )
    names = {p.name for p in checkpoint.list_folders(tmp_path / "checkpoints")}
    assert names == {"step-00000002", "step-00000004", "step-00000005"}
    assert (tmp_path / "checkpoints" / "best").read_text() == "step-00000002"


def test_another_models_weights_are_refused_by_name(tmp_path, state):
    place = checkpoint.save(tmp_path, state, at(1), {}, keep=1)
    other = {**state.params, "extra": torch.ones(1)}
    with pytest.raises(ValueError, match="extra"):
        checkpoint.load_weights(place, other)
    wider = {**state.params, "norm": torch.ones(64)}
    with pytest.raises(ValueError, match=r"'norm' is .* the config needs"):
        checkpoint.load_weights(place, wider, raw=True)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, state, monkeypatch):
    import collections
    import shutil

    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(OSError, match="make room"):
        checkpoint.save(tmp_path, state, at(1), {}, keep=1)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_keys_of_the_state_file_are_those_of_older_versions(tmp_path, state):
    folder = checkpoint.save(
        tmp_path, state, at(1, best_val_loss=2.5, metric_sums=(("loss", 3.0, 2.0),)), {}, keep=1
    )
    written = msgspec.json.decode((folder / checkpoint.STATE).read_bytes())
    assert written["best"] == 2.5
    assert written["gathered"] == [["loss", 3.0, 2.0]]
    assert checkpoint.verify(folder).metric_sums == (("loss", 3.0, 2.0),)
