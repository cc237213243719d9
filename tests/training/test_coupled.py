"""Losses that couple all images of a step: any split has the same gradient and state, and a state trains on bitwise."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_discriminators import ALONE, trained_steps
from test_open_objectives import losses, train
from test_ranks import train_in_ranks
from torch import nn

from onestep import distributed, objectives
from onestep.bench.estimate import run_footprint
from onestep.checkpoints.training_state import read_training_state
from onestep.components import build
from onestep.config import parse_experiment
from onestep.config.run import run_of
from onestep.coupling import Coupled, CoupledLoss, Start
from onestep.training.coupled import begin_states, coupled_gradients, tensors_of
from onestep.training.loop import next_data, take_step
from onestep.training.resume import Resume
from onestep.training.run import assemble
from onestep.training.step import StepData, set_training_mode
from tiny import tiny_config

_DIGITS = {"digits": 1.0}
CASES = {
    "average": {"name": "frechet", "features": _DIGITS, "decay": 0.9, "warm_start": 128, "reference": 256},
    "ring": {"name": "frechet", "features": _DIGITS, "population": "ring", "warm_start": 64, "reference": 256},
    "kernel": {"name": "kernel", "features": _DIGITS, "points": 40, "reference": 192, "held_out": 64},
    "neighbours": {
        "name": "kernel",
        "features": _DIGITS,
        "against": "neighbours",
        "kernel": "polynomial",
        "scales": [3.0],
        "offset": 1.0,
        "normalise": False,
    },
    "drifting": {"name": "drifting", "features": _DIGITS},
    "batch": {"name": "kernel", "features": _DIGITS, "against": "batch", "scales": [0.5, 1.0]},
}
_SPLITS = [(1, None), (1, 5), (2, None), (3, 2)]  # ranks, and images of each that pass at once


def test_every_objective_with_a_coupled_loss_is_tried():
    folder = Path(objectives.__file__).parent
    coupled = {path.stem for path in folder.glob("[!_]*.py") if "coupled=" in path.read_text()}
    assert coupled == {case["name"] for case in CASES.values()}


def document_of(bench, case, **changes):
    """Return the document of a run, of a generator without dropout."""
    document = yaml.safe_load(bench.document("digits_d2o", batch=12).read_text())
    del document["discriminator"]
    adam = {"name": "adam", "lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8}
    return document | {"objective": CASES[case], "optimizers": {"generator": adam}, "dropout": 0.0} | changes


def begun(bench, case, folder, **changes):
    """Return the training of a run, with its state."""
    document = document_of(bench, case, **changes)
    training = assemble(run_of(document), files=bench.files(document), ranks=ALONE)
    Resume(training, folder=folder, ranks=ALONE, code="").restore()
    set_training_mode(training.networks, phases=training.phases)
    return training


@pytest.fixture(scope="module")
def split(bench, tmp_path_factory):
    """Of each case and each split, the loss of one step, its gradients, and the state after it."""
    folder, found = tmp_path_factory.mktemp("split"), {}
    for place, (world, micro_batch) in enumerate(_SPLITS):
        changes = {} if micro_batch is None else {"micro_batch": micro_batch}
        here = folder / str(place)
        if world > 1:
            runs = [document_of(bench, case, **changes) for case in CASES]
            tasks = [{"run": run, "steps": 1, "batch_norm": "training"} for run in runs]
            for number, (report, _) in enumerate(train_in_ranks(bench, tasks, here, world=world)):
                assert (report["ranks"], report["equal"]) == (world, True)
                loss, numbers = report["losses"][0]["generator"], load_file(here / f"{number}-last.safetensors")
                found[list(CASES)[number], place] = loss, numbers
            continue
        for case in CASES:
            training = begun(bench, case, here, **changes)
            (report,) = take_step(training, images_seen=0, ranks=ALONE)
            parameters = training.networks["generator"].named_parameters()
            gradients = {f"generator.{name}": each.grad for name, each in parameters if each.grad is not None}
            found[case, place] = float(report.loss), {**gradients, **tensors_of(training.states)}
    return found


@pytest.mark.parametrize("place", range(1, len(_SPLITS)))
@pytest.mark.parametrize("case", CASES)
def test_every_split_has_the_same_gradient_and_state(split, case, place):
    (loss, whole), (other, parts) = split[case, 0], split[case, place]
    assert other == pytest.approx(loss, rel=1e-6) and whole.keys() == parts.keys()
    gradients = [name for name in whole if name.startswith("generator.model.")]
    one, two = (torch.cat([each[name].flatten() for name in gradients]).double() for each in (whole, parts))
    # 9e-7, whatever the loss: float32 convolutions of another number of images. In float64 see below.
    assert one.norm() > 0 and (two - one).norm() <= 2e-6 * one.norm()
    for name in whole.keys() - set(gradients):
        assert (parts[name] - whole[name]).abs().max() <= 1e-6 * max(whole[name].abs().max(), 1e-9), name


@pytest.mark.parametrize("case", ["average", "kernel"])
def test_a_restored_state_trains_on_bitwise(bench, tmp_path, case):
    document = document_of(bench, case, batch=8, dropout=0.1, micro_batch=5)
    straight = trained_steps(bench, document, tmp_path / "straight", first=0, last=3)
    trained_steps(bench, document, tmp_path / "stopped", first=0, last=1)
    resumed = trained_steps(bench, document, tmp_path / "stopped", first=1, last=3)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())
    ends = [read_training_state(tmp_path / each).tensors for each in ("straight", "stopped")]
    assert ends[0].keys() == ends[1].keys() and any(name.startswith("coupled.generator.") for name in ends[0])
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_killed_run_ends_bitwise_as_one_that_was_not(bench, tmp_path):
    run = tmp_path / "run.yaml"
    changes = {"batch": 8, "images": 32, "snapshot_every": 32, "snapshots": [32], "dropout": 0.1}
    run.write_text(yaml.safe_dump(document_of(bench, "ring", **changes)))
    straight = train(bench, run, "straight")
    train(bench, run, "killed", kill_at=3, expect=-signal.SIGKILL)
    assert read_training_state(tmp_path / "killed/state/digits_d2o/spec").tensors["coupled.generator.digits/pointer"]
    resumed = train(bench, run, "killed")
    assert losses(straight) == losses(resumed) and len(losses(straight)) == 4
    ends = [read_training_state(tmp_path / each / "state/digits_d2o/spec").tensors for each in ("straight", "killed")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    one, other = ((each / "snapshots/32.safetensors").read_bytes() for each in (straight, resumed))
    assert one == other


def test_a_request_to_stop_ends_what_precedes_the_first_step(bench, tmp_path):
    document = document_of(bench, "average")
    training = assemble(run_of(document), files=bench.files(document), ranks=ALONE)
    requests = iter([False, True])
    resume = Resume(training, folder=tmp_path, ranks=ALONE, code="")
    with pytest.raises(distributed.Left):
        resume.restore(stop=lambda: next(requests))
    assert not any(tmp_path.rglob("*.safetensors")) and not training.states
    assert resume.restore(stop=lambda: False) == 0 and training.states


@pytest.mark.parametrize(("case", "micro_batch"), [("average", None), ("ring", 5), ("kernel", None)])
def test_a_batch_that_is_not_finite_leaves_no_trace_in_the_state(bench, tmp_path, case, micro_batch):
    training = begun(bench, case, tmp_path, **({} if micro_batch is None else {"micro_batch": micro_batch}))
    before = {name: value.clone() for name, value in tensors_of(training.states).items()}
    weight = next(iter(training.networks["generator"].parameters()))
    with torch.no_grad():
        kept = weight.clone()
        weight.fill_(torch.nan)
    (report,) = take_step(training, images_seen=0, ranks=ALONE)
    assert report.replaced > 0.9 * report.entries and not torch.isfinite(report.loss)
    after = tensors_of(training.states)
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    with torch.no_grad():
        weight.copy_(kept)
    (report,) = take_step(training, images_seen=12, ranks=ALONE)
    assert torch.isfinite(report.loss) and not report.replaced
    after = tensors_of(training.states)
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_its_memory_is_estimated():
    config = tiny_config()
    run = {key: value for key, value in config["runs"]["digits_d2o"].items() if key != "discriminator"}
    objective = {"objective": CASES["average"], "optimizers": {"generator": run["optimizers"]["generator"]}}
    config["runs"]["coupled"] = run | objective
    found = run_footprint(parse_experiment(config), "coupled", on_cuda=False)
    assert set(found.phases) == {"generator"} and found.peak(16) > found.peak(8) > found.resident > 0


def _toy(training, *, start=lambda _: {}, loss):
    """Return the phase of a training with another coupled loss, of the pixels' mean over an image."""

    def features(networks, batch):
        noise = batch.random.normal(*batch.images.shape[1:])
        images = networks["generator"](80.0 * noise, noise.new_full((len(noise),), 80.0), batch.condition)
        return {"mean": images.mean(dim=(1, 2, 3))}

    return replace(training.phases[0], coupled=Coupled(features=features, loss=loss, start=start))


def test_the_gradient_is_that_of_the_whole_loss_and_not_of_its_parts(bench, tmp_path):
    """The variance of a step: a mean over parts lacks what differs between them."""
    gradients = {}
    for micro_batch in (None, 4):
        training = begun(bench, "average", tmp_path / str(micro_batch), dropout=0.1)
        phase = _toy(training, loss=lambda features, _: CoupledLoss(value=1e3 * features["mean"].var()))
        parameters = training.optimizers["generator"].parameters
        data = replace(next_data(training, images_seen=0, ranks=ALONE), micro_batch=micro_batch)
        for network in training.networks.values():
            network.eval()
        coupled_gradients(phase, networks=training.networks, data=data, parameters=parameters, ranks=ALONE)
        gradients[micro_batch] = torch.cat([each.grad.flatten() for each in parameters if each.grad is not None])
    apart = (gradients[4] - gradients[None]).abs().max()
    assert gradients[None].abs().max() > 0 and apart <= 1e-5 * gradients[None].abs().max()


@pytest.mark.parametrize("case", CASES)
def test_in_float64_the_gradient_of_parts_is_that_of_the_whole(case):
    """A linear generator and linear features; the reference is all that autograd makes of the whole loss."""
    generator, objective = nn.Linear(6, 6, bias=False, dtype=torch.float64), build("objectives", CASES[case])
    torch.manual_seed(0)
    projection = torch.randn(6, 4, dtype=torch.float64)
    networks = {
        "generator": lambda images, sigma, condition: generator(images.double().flatten(1) / 80).reshape(images.shape),
        "features_digits": lambda images: images.double().flatten(1) @ projection,
    }

    def collect(function, *, images, stream):
        return function(networks, _step(images, stream).batches("generator")[0])

    def _step(rows, name, **named):
        pixels = torch.randn(rows, 1, 2, 3, generator=torch.Generator().manual_seed(len(name)))
        return StepData(images=pixels, condition=None, rows=range(rows), seed=1, images_seen=0, **named)

    (phase,), found = objective.phases(), {}
    with torch.no_grad():
        state = phase.coupled.start(Start(images=300, batch=12, collect=collect))
    for micro_batch in (None, 5, 1):
        generator.zero_grad()
        data = _step(12, "step", micro_batch=micro_batch, states={"generator": state})
        parameters = list(generator.parameters())
        loss = coupled_gradients(phase, networks=networks, data=data, parameters=parameters, ranks=ALONE)
        found[micro_batch] = loss.value, generator.weight.grad.clone(), data.states["generator"]
    (batch,) = _step(12, "step").batches("generator")
    whole = phase.coupled.loss(phase.coupled.features(networks, batch), state)
    (wanted,) = torch.autograd.grad(whole.value, generator.weight)
    for _, gradient, new in found.values():
        assert wanted.norm() > 0 and (gradient - wanted).norm() <= 1e-9 * wanted.norm()
        assert all(torch.allclose(value, new[key], rtol=1e-9) for key, value in whole.state.items())


def test_the_second_pass_has_the_dropout_of_the_first(bench, tmp_path):
    """Where it had another, a loss that is twice the sum of what it sees would differ from the sum of both passes."""
    training = begun(bench, "average", tmp_path, dropout=0.5)
    seen = []
    phase = _toy(training, loss=lambda features, _: CoupledLoss(value=features["mean"].sum()))
    inner = phase.coupled.features

    def features(networks, batch):
        found = inner(networks, batch)
        seen.append(found["mean"].detach())
        return found

    phase = replace(phase, coupled=replace(phase.coupled, features=features))
    data = replace(next_data(training, images_seen=0, ranks=ALONE), micro_batch=4)
    parameters = training.optimizers["generator"].parameters
    training.networks["generator"].train()
    coupled_gradients(phase, networks=training.networks, data=data, parameters=parameters, ranks=ALONE)
    assert len(seen) == 6 and all(torch.equal(seen[place], seen[place + 3]) for place in range(3))
    assert not torch.equal(seen[0], seen[1])


def test_a_state_begins_from_images_in_one_order_and_from_their_own_numbers(bench, tmp_path):
    training, found = begun(bench, "average", tmp_path), []

    def start(start: Start):
        def shown(networks, batch):
            assert not any(network.training for network in training.networks.values())
            return {"pixels": batch.images.mean(dim=(1, 2, 3)), "drawn": batch.random.uniform()}

        for images, stream in ((10, "a"), (100, "a"), (start.images + 3, "b")):
            found.append(start.collect(shown, images=images, stream=stream))
        return {}

    phase = _toy(training, start=start, loss=lambda *_: None)
    begin_states(replace(training, phases=(phase,)), ranks=ALONE)
    few, more, all_of_them = found
    assert len(few["pixels"]) == 10 and all(torch.equal(more[name][:10], few[name]) for name in few)
    size = len(training.pixels)
    assert torch.equal(all_of_them["pixels"][size:], all_of_them["pixels"][:3])
    assert torch.equal(all_of_them["pixels"][:100], more["pixels"])
    assert not torch.equal(all_of_them["drawn"][:100], more["drawn"])
    assert all_of_them["drawn"].unique().numel() > 0.99 * (size + 3)
