"""The step: which phases are due, what moves, what becomes of gradients that are not finite."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from onestep.config.run import Optimizer, Schedule
from onestep.distributed import Ranks
from onestep.objectives import Loss, Phase
from onestep.objectives.cross_entropy import CrossEntropy
from onestep.objectives.edm import Edm
from onestep.training.optimizers import build_optimizers, lazy_reg_ratio
from onestep.training.step import StepData, due, micro_batches, settle_gradients, train_step
from onestep.training.streams import CountedRows

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
ADAM = Optimizer(lr=0.1, betas=(0.0, 0.99), eps=1e-8)


def phase(name, trains="a", every=1, loss=None):
    loss = loss or _sum_of_outputs(trains)
    return Phase(name=name, trains=trains, every=every, gain=float(every), loss=loss, lazy_regularizer=every > 1)


def _sum_of_outputs(role):
    return lambda networks, batch: Loss(value=networks[role](batch.images).sum())


DATA = StepData(images=torch.ones(2, 3), condition=None, rows=range(2), seed=0, images_seen=0)


def test_lazy_phases_skip_step_zero_and_come_every_so_often():
    phases = (phase("g"), phase("r1", every=16))
    assert [step for step in range(40) if len(due(phases, step)) == 2] == [16, 32]
    assert all(due(phases, step)[0].name == "g" for step in range(40))


def test_only_the_trained_role_moves():
    networks = {"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)}
    before = {role: {n: p.clone() for n, p in player.named_parameters()} for role, player in networks.items()}
    phases = (phase("one", "a"),)
    optimizers = build_optimizers(networks, phases=(*phases, phase("two", "b")), options={"a": ADAM, "b": ADAM})
    train_step(phases, networks=networks, optimizers=optimizers, data=DATA, ranks=ALONE)
    assert all(not torch.equal(p, before["a"][n]) for n, p in networks["a"].named_parameters())
    assert all(torch.equal(p, before["b"][n]) for n, p in networks["b"].named_parameters())


def test_frozen_parameters_never_move_nor_collect_gradients():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    network[0].requires_grad_(False)
    before = network[0].weight.clone()
    phases = (phase("one"),)
    optimizers = build_optimizers({"a": network}, phases=phases, options={"a": ADAM})
    for _ in range(3):
        train_step(phases, networks={"a": network}, optimizers=optimizers, data=DATA, ranks=ALONE)
    assert torch.equal(network[0].weight, before)
    assert network[0].weight.grad is None


def test_a_parameter_that_a_loss_does_not_reach_stays_where_it_is():
    network = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    before = network["idle"].weight.clone()
    phases = (phase("one", loss=lambda networks, batch: Loss(value=networks["a"]["used"](batch.images).sum())),)
    optimizers = build_optimizers({"a": network}, phases=phases, options={"a": ADAM})
    train_step(phases, networks={"a": network}, optimizers=optimizers, data=DATA, ranks=ALONE)
    assert torch.equal(network["idle"].weight, before)


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
    networks = {"g": nn.Linear(3, 2), "d": nn.Linear(3, 2)}
    optimizers = build_optimizers(networks, phases=phases, options={"g": ADAM, "d": ADAM})
    assert (lazy_reg_ratio(phases, "g"), lazy_reg_ratio(phases, "d")) == (1.0, 16 / 17)
    assert optimizers["g"].torch.param_groups[0]["lr"] == 0.1
    assert optimizers["d"].torch.param_groups[0]["lr"] == pytest.approx(0.1 * 16 / 17)
    assert optimizers["d"].torch.param_groups[0]["betas"] == (0.0, pytest.approx(0.99 ** (16 / 17)))


def test_a_network_with_nothing_to_train_is_refused():
    network = nn.Linear(3, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="freeze: .* a,"):
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


@pytest.mark.parametrize(("rows", "limit", "sizes"), [(8, None, [8]), (8, 8, [8]), (8, 99, [8]), (7, 3, [2, 2, 3])])
def test_passes_are_few_and_even_and_hold_every_row_once(rows, limit, sizes):
    parts = micro_batches(rows, limit=limit)
    assert [part.stop - part.start for part in parts] == sizes
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))


class Denoiser(nn.Module):
    """Without batch statistics, as all denoisers here."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 1, 3))

    def forward(self, noisy, sigma, labels):
        return nn.functional.pad(self.mix(noisy / (1 + sigma[:, None, None, None])), (1, 1, 1, 1))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(1), nn.Linear(4 * 6 * 6, 3))

    def forward(self, images):
        return SimpleNamespace(logits=self.mix(images))


@pytest.mark.parametrize(
    ("objective", "network"),
    [(Edm(p_mean=-1.2, p_std=1.2, sigma_data=0.5), Denoiser), (CrossEntropy(shift=2), Classifier)],
)
@pytest.mark.parametrize("limit", [1, 3, 4])
def test_a_step_in_passes_equals_the_undivided_step(objective, network, limit):
    whole, parted = (_three_steps(objective, network, limit=chosen) for chosen in (None, limit))
    assert whole["reports"].keys() == parted["reports"].keys() and len(whole["reports"]) == 6
    for name, value in whole["reports"].items():
        torch.testing.assert_close(parted["reports"][name], value, rtol=1e-6, atol=1e-6)
    for name, value in whole["gradients"].items():
        assert (parted["gradients"][name] - value).norm() <= 1e-6 * max(1.0, value.norm()), name
    for name, value in whole["moved"].items():
        torch.testing.assert_close(parted["moved"][name], value, rtol=0, atol=1e-6)


def _three_steps(objective, network, *, limit):
    """Return reports, last gradients and parameters after three steps of seven rows, in passes of `limit` at most."""
    torch.manual_seed(0)
    networks = {objective.publishes: network().double()}
    images, labels = torch.rand(7, 1, 8, 8).double() * 2 - 1, torch.eye(3)[torch.arange(7) % 3].double()
    options = {objective.publishes: Optimizer(lr=0.01, betas=(0.9, 0.99), eps=1e-8)}
    optimizers = build_optimizers(networks, phases=objective.phases(), options=options)
    reports = {}
    for step in range(3):
        rows = range(7 * step, 7 * step + 7)
        (report,) = train_step(
            objective.phases(),
            networks=networks,
            optimizers=optimizers,
            data=StepData(
                images=images, condition=labels, rows=rows, seed=0, images_seen=rows.start, micro_batch=limit
            ),
            ranks=ALONE,
        )
        reports |= {f"loss {step}": report.loss, **{f"{name} {step}": v for name, v in report.observed.items()}}
    parameters = dict(networks[objective.publishes].named_parameters())
    gradients = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    return {"reports": reports, "gradients": gradients, "moved": {n: p.detach() for n, p in parameters.items()}}


def test_an_optimizer_is_chosen_by_name():
    def one_step(**options):
        torch.manual_seed(0)
        networks, phases = {"a": nn.Linear(3, 2)}, (phase("one"), phase("lazy", every=16))
        built = build_optimizers(networks, phases=phases, options={"a": replace(ADAM, **options)})
        train_step(phases[:1], networks=networks, optimizers=built, data=DATA, ranks=ALONE)
        return built["a"].torch, networks["a"].weight.detach()

    (adam, by_default), (named, by_name), (radam, rectified) = one_step(), one_step(name="adam"), one_step(name="radam")
    assert type(adam) is type(named) is torch.optim.Adam and type(radam) is torch.optim.RAdam
    assert torch.equal(by_default, by_name) and not torch.equal(by_name, rectified)
    assert radam.param_groups[0]["lr"] == pytest.approx(0.1 * 16 / 17)
    assert radam.param_groups[0]["betas"] == (0.0, pytest.approx(0.99 ** (16 / 17)))
    adamw, decayed = one_step(name="adamw", weight_decay=0.5)
    assert type(adamw) is torch.optim.AdamW and torch.equal(one_step(name="adamw")[1], by_name)
    torch.manual_seed(0)
    # Decoupled: the weights shrink by lr times the decay before Adam's own step.
    start = nn.Linear(3, 2).weight.detach()
    torch.testing.assert_close(decayed - by_name, -0.1 * 16 / 17 * 0.5 * start)
    with pytest.raises(ValueError, match="'sgd'"):
        one_step(name="sgd")


def test_only_a_lazy_regularizer_corrects_the_constants_of_adam():
    """A network trained on every fifth step keeps its learning rate and betas as given."""
    rare = Phase(name="g", trains="g", every=5, loss=_sum_of_outputs("g"))
    optimizers = build_optimizers({"g": nn.Linear(3, 2)}, phases=(rare,), options={"g": ADAM})
    (group,) = optimizers["g"].torch.param_groups
    assert (group["lr"], group["betas"]) == (0.1, (0.0, 0.99))


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Schedule(), {0: 1.0, 500: 1.0, 1000: 1.0}),
        (Schedule(warmup=100), {0: 0.0, 25: 0.25, 100: 1.0, 1000: 1.0}),
        (Schedule(name="cosine", final=0.2), {0: 1.0, 500: 0.6, 1000: 0.2}),
        (Schedule(name="cosine", warmup=200), {100: 0.5, 200: 1.0, 600: 0.5, 1000: 0.0}),
        (Schedule(name="inverse_sqrt", decay_from=100), {50: 1.0, 100: 1.0, 400: 0.5}),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule, factors):
    phases, networks = (phase("one"), phase("lazy", every=16)), {"a": nn.Linear(3, 2)}
    options = {"a": replace(ADAM, schedule=schedule)}
    optimizers = build_optimizers(networks, phases=phases, options=options, images=1000)
    for images_seen, factor in factors.items():
        data = replace(DATA, images_seen=images_seen)
        train_step(phases[:1], networks=networks, optimizers=optimizers, data=data, ranks=ALONE)
        (group,) = optimizers["a"].torch.param_groups
        assert group["lr"] == pytest.approx(0.1 * 16 / 17 * factor, abs=1e-12)


def test_a_gradient_is_clipped_by_its_norm():
    networks = {"a": nn.Linear(3, 2)}
    for limit in (0.5, 1e9):
        options = {"a": replace(ADAM, clip_norm=limit)}
        optimizers = build_optimizers(networks, phases=(phase("one"),), options=options)
        train_step((phase("one"),), networks=networks, optimizers=optimizers, data=DATA, ranks=ALONE)
        norm = torch.cat([p.grad.flatten() for p in networks["a"].parameters()]).norm()
        # Six weights and two biases with a gradient of 2 each.
        torch.testing.assert_close(norm, torch.tensor(min(limit, 2 * 8**0.5)))
