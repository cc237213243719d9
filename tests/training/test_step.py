"""The step: which phases are due, what moves, what becomes of gradients that are not finite."""

import pytest
import torch
from torch import nn

from onestep.distributed import Ranks
from onestep.objectives import Batch, Loss, Phase
from onestep.training.optimizers import build_optimizers, laziness
from onestep.training.randomness import CountedRows
from onestep.training.step import due, settle_gradients, train_step

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
ADAM = {"lr": 0.1, "betas": [0.0, 0.99], "eps": 1e-8}


def phase(name, trains="a", every=1, loss=None):
    return Phase(name=name, trains=trains, every=every, gain=float(every), loss=loss or _sum_of_outputs(trains))


def _sum_of_outputs(role):
    return lambda players, batch: Loss(value=players[role](batch.images).sum())


def batch_for(phase):
    rows = CountedRows(seed=0, phase=phase.name, rows=range(2), device=ALONE.device)
    return Batch(images=torch.ones(2, 3), labels=None, random=rows, images_seen=0)


def test_lazy_phases_skip_step_zero_and_come_every_so_often():
    phases = (phase("g"), phase("r1", every=16))
    assert [step for step in range(40) if len(due(phases, step)) == 2] == [16, 32]
    assert all(due(phases, step)[0].name == "g" for step in range(40))


def test_only_the_trained_role_moves():
    players = {"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)}
    before = {role: {n: p.clone() for n, p in player.named_parameters()} for role, player in players.items()}
    phases = (phase("one", "a"),)
    optimizers = build_optimizers(players, phases=(*phases, phase("two", "b")), options={"a": ADAM, "b": ADAM})
    train_step(phases, players=players, optimizers=optimizers, batch_for=batch_for, ranks=ALONE)
    assert all(not torch.equal(p, before["a"][n]) for n, p in players["a"].named_parameters())
    assert all(torch.equal(p, before["b"][n]) for n, p in players["b"].named_parameters())


def test_frozen_parameters_never_move_nor_collect_gradients():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    network[0].requires_grad_(False)
    before = network[0].weight.clone()
    phases = (phase("one"),)
    optimizers = build_optimizers({"a": network}, phases=phases, options={"a": ADAM})
    for _ in range(3):
        train_step(phases, players={"a": network}, optimizers=optimizers, batch_for=batch_for, ranks=ALONE)
    assert torch.equal(network[0].weight, before)
    assert network[0].weight.grad is None


def test_gradients_that_are_not_finite_are_replaced_and_counted():
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.tensor([float("nan"), float("inf"), -float("inf"), 2.0])
    untouched = nn.Parameter(torch.zeros(2))
    replaced, entries = settle_gradients([parameter, untouched], ranks=ALONE)
    assert (int(replaced), entries) == (3, 6)
    assert parameter.grad.tolist() == [0.0, 1e5, -1e5, 2.0]
    assert untouched.grad.tolist() == [0.0, 0.0]


def test_lazy_roles_get_corrected_constants():
    phases = (phase("g", "g"), phase("d", "d"), phase("r1", "d", every=16))
    players = {"g": nn.Linear(3, 2), "d": nn.Linear(3, 2)}
    optimizers = build_optimizers(players, phases=phases, options={"g": ADAM, "d": ADAM})
    assert (laziness(phases, "g"), laziness(phases, "d")) == (1.0, 16 / 17)
    assert optimizers["g"].param_groups[0]["lr"] == 0.1
    assert optimizers["d"].param_groups[0]["lr"] == pytest.approx(0.1 * 16 / 17)
    assert optimizers["d"].param_groups[0]["betas"] == (0.0, pytest.approx(0.99 ** (16 / 17)))


def test_a_network_with_nothing_to_train_is_refused():
    network = nn.Linear(3, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of the a is frozen"):
        build_optimizers({"a": network}, phases=(phase("one"),), options={"a": ADAM})


def test_rows_own_their_noise_however_they_are_split():
    def rows(which):
        return CountedRows(seed=3, phase="generator", rows=which, device=ALONE.device)

    whole, odd = rows(range(8)), rows(range(1, 8, 2))
    first, second = whole.normal(2, 4), whole.normal(2, 4)
    assert torch.equal(first[1::2], odd.normal(2, 4))
    assert torch.equal(second[1::2], odd.normal(2, 4))
    assert not torch.equal(first, second)
    other = CountedRows(seed=3, phase="discriminator", rows=range(8), device=ALONE.device)
    assert not torch.equal(first, other.normal(2, 4))
    assert abs(float(rows(range(2000)).normal(8).std()) - 1) < 0.02
