"""Each option of `precision:` and `compile:`, and each pair, against plain float32: gradients, updates, averages.

A loss would not do: it hardly changes where the updates are wrong.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch

from onestep.checkpoints.training_state import load_optimizer, optimizer_tensors
from onestep.config.run import Optimizer
from onestep.objectives.d2o import D2O
from onestep.training.execution import Execution
from onestep.training.optimizers import build_optimizers
from small_networks import FAMILIES, far_apart, small_networks, traced

CPU = torch.device("cpu")
_ON_A_CPU: dict[str, dict[str, Any]] = {
    "bf16_generator": {"bfloat16": {"networks"}},
    "bf16_discriminator": {"bfloat16": {"discriminators"}},
    "channels_last": {"channels_last": True},
    "fused_optimizer": {"fused_optimizer": True},
}
_ON_A_GPU = _ON_A_CPU | {
    "tf32": {"tf32": True},
    "compile": {"networks": True},
    "cuda_graphs": {"networks": True, "cuda_graphs": True},
}
_FLOAT32_SHARE = 0.02  # of the norm of a tensor, by which another order of float32 operations may change it
_HALF_SHARE = 0.7  # likewise for bfloat16, which keeps 8 bits; that of updates of other parameters is 1 or more


def _execution(*names: str) -> Execution:
    chosen = [_ON_A_GPU[name] for name in names]
    half = frozenset().union(*(each.get("bfloat16", ()) for each in chosen))
    return Execution(**{**{k: v for each in chosen for k, v in each.items()}, "bfloat16": half})


def _share(*names: str) -> float:
    return _HALF_SHARE if any("bf16" in name or name == "tf32" for name in names) else _FLOAT32_SHARE


def _sets(options: Any) -> list[tuple[str, ...]]:
    return [names for size in (1, 2) for names in itertools.combinations(options, size)]


@functools.cache
def _plain(kind: str, device: torch.device, **options: Any) -> dict[str, torch.Tensor]:
    return traced(small_networks(kind), Execution(), device=device, **options)


@pytest.mark.parametrize("names", _sets(_ON_A_CPU), ids="+".join)
def test_gradients_updates_and_averages_are_those_of_plain_float32(names):
    found = traced(small_networks("song"), _execution(*names), device=CPU)
    assert far_apart(found, _plain("song", CPU), share=_share(*names)) == {}


@pytest.mark.parametrize("options", [{"micro_batch": 3}, {"r1_gradient": "double_backward"}], ids=str)
def test_so_they_are_in_parts_with_classes_and_with_the_other_penalty(options):
    names = ("channels_last", "fused_optimizer") if "micro_batch" in options else tuple(_ON_A_CPU)
    found = traced(small_networks("adm"), _execution(*names), device=CPU, **options)
    assert far_apart(found, _plain("adm", CPU, **options), share=_share(*names)) == {}


@pytest.mark.parametrize("fused", [False, True])
def test_a_restored_optimizer_goes_on_as_the_undisturbed_one(fused):
    """Files have one memory layout; in another one than the parameters' a fused kernel pairs other numbers."""
    networks = small_networks("song")
    Execution(channels_last=True).lay_out(networks, families=FAMILIES)
    phases, options = D2O(r1_gamma=1.0, r1_every=2).phases(), dict.fromkeys(networks, Optimizer(lr=1e-3))
    first, second = (
        build_optimizers(networks, phases=phases, options=options, fused=fused)["generator"] for _ in range(2)
    )
    for parameter in first.parameters:
        parameter.grad = torch.randn_like(parameter)
    first.torch.step()
    tensors, values = optimizer_tensors(first.torch)
    load_optimizer(second.torch, {name: value.contiguous() for name, value in tensors.items()}, values)
    for parameter in second.parameters:
        assert second.torch.state[parameter]["exp_avg_sq"].stride() == parameter.stride()
    assert not all(parameter.is_contiguous() for parameter in second.parameters)
    before = [parameter.detach().clone() for parameter in first.parameters]
    first.torch.step()
    after = [parameter.detach().clone() for parameter in first.parameters]
    for parameter, value in zip(first.parameters, before, strict=True):
        parameter.data.copy_(value)
    second.torch.step()
    assert all(torch.equal(parameter, value) for parameter, value in zip(second.parameters, after, strict=True))


_UNCOMPILED = [name for name in _ON_A_GPU if "networks" not in _ON_A_GPU[name]]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["song", "adm"])
@pytest.mark.parametrize(
    "names", [(), *_sets(_UNCOMPILED), ("compile",), ("cuda_graphs",), (*_UNCOMPILED, "cuda_graphs")], ids="+".join
)
def test_on_a_gpu_they_are_those_of_a_cpu(kind, names):
    """Three steps, because CUDA graphs are recorded in the second and replayed in the third."""
    found = traced(small_networks(kind), _execution(*names), device=torch.device("cuda"), steps=3)
    assert far_apart(found, _plain(kind, CPU, steps=3), share=_share(*names)) == {}


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_keep_the_results_of_each_micro_batch():
    options = {"steps": 3, "micro_batch": 2}
    found = traced(small_networks("song"), _execution("cuda_graphs"), device=torch.device("cuda"), **options)
    assert far_apart(found, _plain("song", CPU, **options), share=_FLOAT32_SHARE) == {}
