"""The measurements of test_shard.py, run by torchrun: `ranks.py OUT` writes `{law: figure}`."""

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from slm_fn.core import random, tree
from slm_fn.core.compose import pipe
from slm_fn.core.grads import accumulate, value_and_grad
from slm_fn.core.types import LMBatch, PairBatch
from slm_fn.lift import shard
from slm_fn.loss.lm import next_token
from slm_fn.loss.preference import dpo, reference_from_batch
from slm_fn.nn import gpt
from slm_fn.optim import recipes
from slm_fn.train import checkpoint
from slm_fn.train.step import init_state, step_with

ROWS, LENGTH = 5, 12
INFO = checkpoint.CheckpointInfo(0, 0, 0, 0, 0.0, 1, "", "", "", "")


def model(num_layers=2, **changes):
    """A decoder as if trained a while, and its apply."""
    shape = {
        "vocab_size": 65,
        "dim": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_dim": 64,
        "context": 32,
    }
    config = gpt.ModelConfig(
        num_layers=num_layers, **{**shape, "qk_norm": True, "tied": False, **changes}
    )
    params = tree.map_with_path(
        gpt.init(config, 0),
        lambda path, w: w + random.normal(random.fold_in(1, path), w.shape, 0.05),
    )
    return config, params, partial(gpt.apply, config, backend="plain")


def rows(key):
    """Rows that count unequally many targets."""
    u = random.uniform(random.fold_in(key, "tokens"), (ROWS, LENGTH + 1))
    counted = 1 + (torch.arange(ROWS) * 3 + key) % LENGTH
    return LMBatch((u * 65).long(), (torch.arange(LENGTH) < counted[:, None]).float())


def mine(batch):
    """This rank's part; of five rows two ranks have two and three."""
    begin, end = (ROWS * r // dist.get_world_size() for r in (dist.get_rank(), dist.get_rank() + 1))
    return tree.map(lambda x: x[begin:end], batch)


def firsts(batch):
    """All rows on the first rank, none on the others."""
    return tree.map(lambda x: x[: ROWS if dist.get_rank() == 0 else 0], batch)


def gap(a, b):
    """The largest relative difference of two trees' leaves; sharded ones are gathered."""
    a, b = tree.named_leaves(a), tree.named_leaves(b)
    assert a.keys() == b.keys()
    far = [
        (tree.full_tensor(a[k]).double() - b[k].double()).norm()
        / b[k].double().norm().clamp(min=1e-30)
        for k in a
    ]
    return max(float(x) for x in far)


def trained(name, params, config, vg, part, num_steps=20):
    """The state and the last metrics after some steps of the complete optimizer chain."""
    optim = recipes.OptimConfig(
        name=name, ema_decay=0.9, learning_rate=1e-2, clip=0.3, warmup_steps=2
    )
    tx = recipes.make_optimizer(optim, 20, gpt.matrix_paths(config).__contains__)
    state, step = init_state(params, tx), step_with(tx)(vg)
    for i in range(num_steps):
        state, metrics = step(state, part(rows(i)))
    return state, metrics


def data_parallel(mesh, folder):
    """Steps on two ranks against one: replicated, and sharded with any number of layers."""
    figures = {}
    for name, num_layers, num_steps in (("adamw", 3, 20), ("muon", 2, 20), ("muon", 1, 2)):
        config, params, apply = model(num_layers)
        vg = value_and_grad(next_token(apply))
        begun = {
            "replicate": params,
            "fsdp": shard.shard_params(params, shard.zero_placements(params, mesh), mesh),
        }
        one, expected_metrics = trained(name, params, config, vg, lambda batch: batch, num_steps)
        for how, begin in begun.items():
            lift = pipe(accumulate(2), getattr(shard, how)(mesh))
            state, metrics = trained(name, begin, config, lift(vg), mine, num_steps)
            figures[f"{how} {name} {num_layers}"] = max(
                gap(state, one), gap(metrics, expected_metrics)
            )
        if num_layers == 2:
            figures["saved"] = saved(state, one, folder)
            figures["share held"] = max(
                leaf.to_local().numel() / leaf.numel() for leaf in tree.leaves(state.params)
            )
    for how, begin in begun.items():
        state, _ = trained(name, begin, config, getattr(shard, how)(mesh)(vg), firsts, num_steps)
        figures[f"{how} no rows"] = gap(state, one)
    return figures


def saved(state, one, folder):
    """The checkpoint of a sharded state against the state, loaded in full and loaded sharded."""
    if dist.get_rank() == 0:
        checkpoint.save(folder, state, INFO, {}, keep=1)
    else:
        checkpoint.gather_shards(state)
    dist.barrier()
    again, _ = checkpoint.load(checkpoint.step_folder(folder, 0), tree.map(torch.zeros_like, state))
    plain, _ = checkpoint.load(checkpoint.step_folder(folder, 0), one)
    assert [leaf.placements for leaf in tree.leaves(again.params)] == [
        x.placements for x in tree.leaves(state.params)
    ]
    return max(gap(again, plain), gap(state, plain))


def what_losses_report(mesh):
    """The metrics of DPO, with a rank without rows: counts add up, means are weighted."""
    _, params, apply = model()
    sides = rows(1), rows(2)
    batch = PairBatch(*sides, torch.full((ROWS, 2), -20.0) + torch.arange(ROWS)[:, None])
    vg = value_and_grad(dpo(reference_from_batch)(apply))
    (value, aux), grads = vg(params, batch)
    figures = {}
    for name, part in (("dpo", mine), ("dpo no rows", firsts)):
        (value_, aux_), grads_ = shard.replicate(mesh)(vg)(
            params, part(batch), torch.tensor(1024.0)
        )
        figures[name] = gap((value_, aux_, grads_), (value, aux, grads))
    return figures


def model_parallel(mesh):
    """Loss, gradients and a Muon step of tensor-parallel parameters, with the apply unchanged."""
    figures = {}
    options = {"plain": {}, "tied": {"tied": True, "ffn": "gelu", "biases": "all", "norm": "layer"}}
    for name, changes in options.items():
        config, params, apply = model(2, **changes)
        placed = shard.shard_params(params, shard.tensor_parallel(config, mesh), mesh)
        vg = value_and_grad(next_token(apply))
        figures[f"tensor parallel {name}"] = gap(
            shard.implicit(vg)(placed, rows(0)), vg(params, rows(0))
        )
    one, two = (
        trained("muon", p, config, f, lambda batch: batch, num_steps=2)
        for p, f in ((params, vg), (placed, shard.implicit(vg)))
    )
    figures["tensor parallel muon"] = gap(two, one)
    return figures


def both(size):
    """Two pairs of ranks: data parallel over pairs, tensor parallel within each."""
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("data", "model"))
    config, params, apply = model(2)
    vg = value_and_grad(next_token(apply))
    placed = shard.shard_params(params, shard.tensor_parallel(config, mesh["model"]), mesh["model"])

    def half(batch):
        return tree.map(lambda x: x[:2] if mesh.get_local_rank("data") == 0 else x[2:], batch)

    one = trained("muon", params, config, vg, lambda batch: batch)
    two = trained(
        "muon", placed, config, pipe(shard.implicit, shard.replicate(mesh["data"]))(vg), half
    )
    return {"data and tensor parallel": gap(two, one)}


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    out, size = Path(sys.argv[1]), dist.get_world_size()
    if size == 2:
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data",))
        figures = (
            data_parallel(mesh, out.parent / "run")
            | what_losses_report(mesh)
            | model_parallel(mesh)
        )
    else:
        figures = both(size)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(figures))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
