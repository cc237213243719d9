"""Each option of `precision:` and `compile:` changes what it says, and nothing else."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from onestep.discriminators._views import cast_once
from onestep.training.batches import CountedRows
from onestep.training.speed import Speed, obstacle, speed_of, views_of
from torch import nn

from onestep.classifiers import build_classifier
from onestep.discriminators._backbones import classifier_backbone
from onestep.discriminators.projected import Projected
from onestep.distributed import Ranks
from onestep.networks import build_denoiser
from onestep.objectives import Batch
from onestep.objectives.d2o import D2O
from onestep.training.assembly import freeze
from onestep.training.optimizers import build_optimizers
from onestep.training.step import train_step

CPU = torch.device("cpu")
_RANKS = Ranks(rank=0, world=1, device=CPU)
_ADAM = {"lr": 2e-4, "betas": [0.0, 0.99], "eps": 1e-8}
_OBJECTIVE = D2O(loss="non_saturating", sigma=80.0, rows_per_rank=8.0, r1_gamma=1.0, r1_every=2)


def _generator():
    torch.manual_seed(0)
    shape = {"img_resolution": 16, "img_channels": 1, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
    network = build_denoiser({"model_type": "SongUNet", **shape, "attn_resolutions": (8,), "dropout": 0.0})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    freeze(network, ["conv", "proj"])
    return network


def _discriminator(classes=0):
    torch.manual_seed(1)
    classifier = build_classifier({"name": "convnet", "resolution": 16, "channels": 1, "classes": 3, "width": 8})
    backbones = {"eye": classifier_backbone(classifier, channels=1)}
    return Projected(backbones=backbones, channels=8, resolution=16, classes=classes, seed=3)


@pytest.fixture
def players():
    return {"generator": _generator(), "discriminator": _discriminator()}


def _batch(phase):
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    random = CountedRows(seed=0, phase=phase.name, rows=range(8), device=CPU)
    return Batch(images=images, condition=None, random=random, images_seen=0)


def _reports(players, speed, *, steps=1):
    for player in players.values():
        player.train()
    optimizers = build_optimizers(
        players,
        phases=_OBJECTIVE.phases(),
        options=dict.fromkeys(players, _ADAM),
        fused=speed.fused_optimizer,
    )
    views = views_of(players, speed=speed)
    for _ in range(steps):
        reports = train_step(
            _OBJECTIVE.phases(),
            players=players,
            views=views,
            optimizers=optimizers,
            passes_for=lambda phase: [_batch(phase)],
            ranks=_RANKS,
        )
    return {report.name: report.loss for report in reports}


def _state(players):
    return {f"{r}.{n}": v.clone() for r, player in players.items() for n, v in player.state_dict().items()}


def test_with_every_option_off_nothing_differs_from_a_step_without_views(players):
    others = copy.deepcopy(players)
    found = _reports(players, Speed())
    optimizers = build_optimizers(others, phases=_OBJECTIVE.phases(), options=dict.fromkeys(others, _ADAM))
    for player in others.values():
        player.train()
    wanted = train_step(
        _OBJECTIVE.phases(),
        players=others,
        optimizers=optimizers,
        passes_for=lambda phase: [_batch(phase)],
        ranks=_RANKS,
    )
    assert all(torch.equal(found[report.name], report.loss) for report in wanted)
    after = _state(others)
    assert all(torch.equal(value, after[name]) for name, value in _state(players).items())


@pytest.mark.parametrize("half", ["half_generator", "half_discriminator"])
def test_half_precision_gives_losses_close_to_single_precision(players, half):
    """bfloat16 keeps 8 bits, 0.4 %: losses agree to 2 %, and the penalty of the first step, which is not touched."""
    single = _reports(copy.deepcopy(players), Speed())
    found = _reports(players, Speed(**{half: True}))
    for name in ("generator", "discriminator"):
        assert torch.isfinite(found[name]) and not torch.equal(found[name], single[name])
        torch.testing.assert_close(found[name], single[name], rtol=0.02, atol=0)
    assert all(value.dtype == torch.float32 for value in _state(players).values() if value.is_floating_point())


def test_the_penalty_sees_the_discriminator_in_single_precision(players):
    single, half = copy.deepcopy(players), players
    (penalty,) = (phase for phase in _OBJECTIVE.phases() if phase.second_order)
    losses = []
    for each, speed in ((single, Speed()), (half, Speed(half_discriminator=True))):
        each["discriminator"].train()
        optimizers = build_optimizers(each, phases=_OBJECTIVE.phases(), options=dict.fromkeys(each, _ADAM))
        (report,) = train_step(
            (penalty,),
            players=each,
            views=views_of(each, speed=speed),
            optimizers=optimizers,
            passes_for=lambda phase: [_batch(phase)],
            ranks=_RANKS,
        )
        losses.append(report.loss)
    assert torch.equal(*losses)


@pytest.mark.parametrize("classes", [0, 3])
def test_under_half_precision_the_power_iteration_and_the_logits_stay_single(classes):
    single, half = _discriminator(classes).train(), _discriminator(classes).train()
    view = views_of({"discriminator": half}, speed=Speed(half_discriminator=True))["discriminator"]
    images = torch.rand(4, 1, 16, 16) * 2 - 1
    labels = torch.eye(3)[torch.tensor([0, 1, 2, 0])] if classes else None
    logits = view(images, labels)
    wanted = single(images, labels)
    assert logits.dtype == torch.float32 and view.features(images)[0][0].dtype == torch.bfloat16
    assert (logits - wanted).abs().max() <= 0.05 * wanted.abs().max()
    vectors = {n: v for n, v in single.state_dict().items() if n.endswith(("weight_u", "weight_v"))}
    assert vectors and all(torch.equal(value, half.state_dict()[name]) for name, value in vectors.items())


def test_frozen_weights_are_cast_once_and_states_do_not_show_it(players):
    names = set(_state(players))
    generator, discriminator = players["generator"], players["discriminator"]
    views_of(players, speed=Speed(half_generator=True, half_discriminator=True))
    layer = generator.model.dec["16x16_block0"].conv0
    assert torch.equal(layer.weight_cast, layer.weight.bfloat16()) and not layer.weight.requires_grad
    assert not hasattr(generator.model.enc["16x16_conv"], "weight_cast")  # it is trained
    assert set(_state(players)) == names
    twin = cast_once(discriminator)
    assert twin.scratch["eye"].layer0_ccm.weight.dtype == torch.bfloat16
    assert discriminator.scratch["eye"].layer0_ccm.weight.dtype == torch.float32


def test_a_cast_ahead_gives_the_bits_of_a_cast_in_time():
    late, ahead = _generator(), _generator()
    late.image_type = torch.bfloat16
    views_of({"generator": ahead}, speed=Speed(half_generator=True))
    noise, sigma = torch.randn(2, 1, 16, 16) * 80, torch.full((2,), 80.0)
    assert torch.equal(ahead(noise, sigma), late(noise, sigma))
    assert torch.equal(ahead(noise, sigma, force_fp32=True), _generator()(noise, sigma))


def test_a_run_in_single_precision_does_not_take_its_teachers_half():
    generator = _generator()
    generator.use_fp16 = True
    assert views_of({"generator": generator}, speed=Speed())["generator"].image_type == torch.float32


@pytest.mark.parametrize("option", ["fused_optimizer", "channels_last"])
def test_another_order_of_operations_changes_rounding_alone(players, option):
    single = _reports(copy.deepcopy(players), Speed(), steps=2)
    for name, value in _reports(players, Speed(**{option: True}), steps=2).items():
        torch.testing.assert_close(value, single[name], rtol=1e-3, atol=1e-5)


def test_the_optimizer_is_fused_where_asked(players):
    phases, options = _OBJECTIVE.phases(), dict.fromkeys(players, _ADAM)
    for fused in (False, True):
        built = build_optimizers(players, phases=phases, options=options, fused=fused)
        assert all(bool(group["fused"]) == fused != bool(group["foreach"]) for group in built["generator"].param_groups)
    with pytest.raises(ValueError, match="torch has no fused radam; only adam"):
        build_optimizers(players, phases=phases, options=dict.fromkeys(players, _ADAM | {"name": "radam"}), fused=True)


def test_channels_last_is_the_layout_of_the_generators_weights(players):
    view = views_of(players, speed=Speed(channels_last=True))["generator"]
    weight = view.model.dec["16x16_block0"].conv0.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"compile": {"networks": True, "cuda_graphs": True}}, "compile.cuda_graphs: true needs a CUDA device"),
        ({"precision": {"tf32": True}}, "precision.tf32: true needs a CUDA device"),
    ],
)
def test_what_a_cpu_cannot_do_is_one_clear_error(block, message):
    with pytest.raises(ValueError, match=message) as error:
        speed_of(block, device=CPU)
    assert "\n" not in str(error.value) and "choose otherwise" in str(error.value)


def test_graphs_without_compiled_networks_are_refused():
    assert "needs networks: true" in obstacle(Speed(cuda_graphs=True), device=torch.device("cuda"))


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "needs a C++ compiler" in obstacle(Speed(networks=True), device=CPU)


class Blur(nn.Module):
    """The smallest network that a compiler has something to fuse in."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return (images * self.weight).sin() + 1


# Its imports also warn of their own deprecation in torch 2.12.
_compiling = pytest.mark.skipif(
    os.environ.get("ONESTEP_COMPILER") != "1" or obstacle(Speed(networks=True), device=CPU) is not None,
    reason="starting torch's compiler takes a minute or more: ONESTEP_COMPILER=1 runs this, with a C++ compiler",
)


def test_generator_and_features_are_compiled_and_nothing_that_is_differentiated_twice(players, monkeypatch):
    given = {}

    def recorded(function, **options):
        given[function.__qualname__ if hasattr(function, "__qualname__") else type(function).__name__] = options
        return function

    monkeypatch.setattr(torch, "compile", recorded)
    views = views_of(players, speed=Speed(networks=True))
    assert set(given) == {"Preconditioned", "Projected.features"}
    assert all(options == {"dynamic": False, "mode": None} for options in given.values())
    assert views["discriminator"].judge == players["discriminator"].judge
    views_of(players, speed=Speed(networks=True, cuda_graphs=True))
    assert all(options["mode"] == "reduce-overhead" for options in given.values())
    assert [phase.name for phase in _OBJECTIVE.phases() if phase.second_order] == ["r1"]


@_compiling
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_computes_and_differentiates_the_same():
    network, images = Blur(), torch.randn(4, 3)
    (view,) = views_of({"classifier": network}, speed=Speed(networks=True)).values()
    assert view is not network
    torch.testing.assert_close(view(images), network(images))
    slopes = [torch.autograd.grad(each(images).sum(), network.weight)[0] for each in (view, network)]
    torch.testing.assert_close(*slopes)


@_compiling
@pytest.mark.filterwarnings("ignore")
def test_heads_are_judged_twice_before_one_backward_beside_compiled_features(players, monkeypatch):
    """With dynamo's own backend, which compiles no kernels but takes the same way."""
    single = _reports(copy.deepcopy(players), Speed(), steps=2)
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: whole(function, backend="aot_eager", dynamic=False))
    for name, value in _reports(players, Speed(networks=True), steps=2).items():
        torch.testing.assert_close(value, single[name], rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "options",
    [
        {"tf32": True},
        {"half_generator": True, "half_discriminator": True},
        {"networks": True},
        {"networks": True, "cuda_graphs": True},
        {"networks": True, "cuda_graphs": True, "half_generator": True, "half_discriminator": True},
        {"fused_optimizer": True, "channels_last": True},
    ],
)
def test_on_a_gpu_losses_stay_close(options):
    """Three steps, so that CUDA graphs are recorded and replayed."""
    device = torch.device("cuda")
    ranks = Ranks(rank=0, world=1, device=device)

    def batch(phase):
        images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1)).to(device) * 2 - 1
        random = CountedRows(seed=0, phase=phase.name, rows=range(8), device=device)
        return Batch(images=images, condition=None, random=random, images_seen=0)

    found = {}
    for name, speed in (("single", Speed()), ("quick", Speed(**options))):
        players = {"generator": _generator().to(device), "discriminator": _discriminator().to(device)}
        for player in players.values():
            player.train()
        fused = speed.fused_optimizer
        chosen = dict.fromkeys(players, _ADAM)
        optimizers = build_optimizers(players, phases=_OBJECTIVE.phases(), options=chosen, fused=fused)
        views = views_of(players, speed=speed)
        for _ in range(3):
            speed.begin_step()
            found[name] = train_step(
                _OBJECTIVE.phases(),
                players=players,
                views=views,
                optimizers=optimizers,
                passes_for=lambda phase: [batch(phase)],
                ranks=ranks,
            )
    for quick, single in zip(found["quick"], found["single"], strict=True):
        torch.testing.assert_close(quick.loss, single.loss, rtol=0.05, atol=1e-3)
