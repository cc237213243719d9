"""Each option of `precision:` and `compile:` changes what it says, and nothing else."""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from onestep.classifiers import build_classifier
from onestep.config.run import Compile, Optimizer, Precision
from onestep.discriminators import with_cast_frozen_weights
from onestep.discriminators._backbones import classifier_backbone
from onestep.discriminators.projected import Projected
from onestep.distributed import Ranks
from onestep.networks import build_denoiser
from onestep.objectives.d2o import D2O
from onestep.training.execution import Execution, execution_of, fastest_kernels, obstacle
from onestep.training.optimizers import build_optimizers
from onestep.training.sources import freeze
from onestep.training.step import StepData, train_step

CPU = torch.device("cpu")
_RANKS = Ranks(rank=0, world=1, device=CPU)
_ADAM = Optimizer(lr=2e-4, betas=(0.0, 0.99), eps=1e-8)
_FAMILIES = {"generator": "networks", "discriminator": "discriminators", "classifier": "classifiers"}
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
def networks():
    return {"generator": _generator(), "discriminator": _discriminator()}


def _data(device=CPU):
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return StepData(images=images.to(device), condition=None, rows=range(8), seed=0, images_seen=0)


def _wrapped(networks, execution):
    return execution.wrapped(networks, families=_FAMILIES)


def _reports(networks, execution, *, steps=1):
    for player in networks.values():
        player.train()
    optimizers = build_optimizers(
        networks,
        phases=_OBJECTIVE.phases(),
        options=dict.fromkeys(networks, _ADAM),
        fused=execution.fused_optimizer,
    )
    wrapped = _wrapped(networks, execution)
    for _ in range(steps):
        reports = train_step(
            _OBJECTIVE.phases(),
            networks=networks,
            wrapped=wrapped,
            optimizers=optimizers,
            data=_data(),
            ranks=_RANKS,
        )
    return {report.name: report.loss for report in reports}


def _state(networks):
    return {f"{r}.{n}": v.clone() for r, player in networks.items() for n, v in player.state_dict().items()}


def test_with_every_option_off_nothing_differs_from_a_step_without_views(networks):
    others = copy.deepcopy(networks)
    found = _reports(networks, Execution())
    optimizers = build_optimizers(others, phases=_OBJECTIVE.phases(), options=dict.fromkeys(others, _ADAM))
    for player in others.values():
        player.train()
    wanted = train_step(
        _OBJECTIVE.phases(),
        networks=others,
        optimizers=optimizers,
        data=_data(),
        ranks=_RANKS,
    )
    assert all(torch.equal(found[report.name], report.loss) for report in wanted)
    after = _state(others)
    assert all(torch.equal(value, after[name]) for name, value in _state(networks).items())


@pytest.mark.parametrize("half", ["networks", "discriminators"])
def test_half_precision_gives_losses_close_to_single_precision(networks, half):
    """bfloat16 keeps 8 bits, 0.4 %: losses agree to 2 %, and the penalty of the first step, which is not touched."""
    single = _reports(copy.deepcopy(networks), Execution())
    found = _reports(networks, Execution(bfloat16={half}))
    for name in ("generator", "discriminator"):
        assert torch.isfinite(found[name]) and not torch.equal(found[name], single[name])
        torch.testing.assert_close(found[name], single[name], rtol=0.02, atol=0)
    assert all(value.dtype == torch.float32 for value in _state(networks).values() if value.is_floating_point())


def test_the_penalty_sees_the_discriminator_in_single_precision(networks):
    single, half = copy.deepcopy(networks), networks
    (penalty,) = (phase for phase in _OBJECTIVE.phases() if phase.second_order)
    losses = []
    for each, execution in ((single, Execution()), (half, Execution(bfloat16={"discriminators"}))):
        each["discriminator"].train()
        optimizers = build_optimizers(each, phases=_OBJECTIVE.phases(), options=dict.fromkeys(each, _ADAM))
        (report,) = train_step(
            (penalty,),
            networks=each,
            wrapped=_wrapped(each, execution),
            optimizers=optimizers,
            data=_data(),
            ranks=_RANKS,
        )
        losses.append(report.loss)
    assert torch.equal(*losses)


@pytest.mark.parametrize("classes", [0, 3])
def test_under_half_precision_the_power_iteration_and_the_logits_stay_single(classes):
    single, half = _discriminator(classes).train(), _discriminator(classes).train()
    view = _wrapped({"discriminator": half}, Execution(bfloat16={"discriminators"}))["discriminator"]
    images = torch.rand(4, 1, 16, 16) * 2 - 1
    labels = torch.eye(3)[torch.tensor([0, 1, 2, 0])] if classes else None
    logits = view(images, labels)
    wanted = single(images, labels)
    assert logits.dtype == torch.float32 and view.frozen_features(images)[0][0].dtype == torch.bfloat16
    assert (logits - wanted).abs().max() <= 0.05 * wanted.abs().max()
    vectors = {n: v for n, v in single.state_dict().items() if n.endswith(("weight_u", "weight_v"))}
    assert vectors and all(torch.equal(value, half.state_dict()[name]) for name, value in vectors.items())


def test_frozen_weights_are_cast_once_and_states_do_not_show_it(networks):
    names = set(_state(networks))
    generator, discriminator = networks["generator"], networks["discriminator"]
    _wrapped(networks, Execution(bfloat16={"networks", "discriminators"}))
    layer = generator.model.dec["16x16_block0"].conv0
    assert torch.equal(layer.weight_cast, layer.weight.bfloat16()) and not layer.weight.requires_grad
    assert not hasattr(generator.model.enc["16x16_conv"], "weight_cast")  # it is trained
    assert set(_state(networks)) == names
    twin = with_cast_frozen_weights(discriminator)
    assert twin.scratch["eye"].layer0_ccm.weight.dtype == torch.bfloat16
    assert discriminator.scratch["eye"].layer0_ccm.weight.dtype == torch.float32


def test_a_cast_ahead_gives_the_bits_of_a_cast_in_time():
    late, ahead = _generator(), _generator()
    late.image_type = torch.bfloat16
    _wrapped({"generator": ahead}, Execution(bfloat16={"networks"}))
    noise, sigma = torch.randn(2, 1, 16, 16) * 80, torch.full((2,), 80.0)
    assert torch.equal(ahead(noise, sigma), late(noise, sigma))
    assert torch.equal(ahead(noise, sigma, force_fp32=True), _generator()(noise, sigma))


def test_a_run_in_single_precision_does_not_take_its_teachers_half():
    generator = _generator()
    generator.use_fp16 = True
    assert _wrapped({"generator": generator}, Execution())["generator"].image_type == torch.float32


def test_the_preset_has_the_gradients_of_single_precision_but_for_rounding(networks):
    """What a CPU can compute of it. bfloat16 keeps 8 bits; the penalty's discriminator has moved by two steps."""
    found = []
    for execution in (Execution(), Execution(bfloat16={"networks", "discriminators"}, fused_optimizer=True)):
        own = copy.deepcopy(networks)
        chosen = dict.fromkeys(own, _ADAM)
        fused = execution.fused_optimizer
        optimizers = build_optimizers(own, phases=_OBJECTIVE.phases(), options=chosen, fused=fused)
        wrapped, gradients = _wrapped(own, execution), {}
        for phase in _OBJECTIVE.phases():
            train_step((phase,), networks=own, wrapped=wrapped, optimizers=optimizers, data=_data(), ranks=_RANKS)
            parts = [each.grad.flatten() for each in optimizers[phase.trains].parameters]
            gradients[phase.name] = torch.cat(parts)
        found.append(gradients)
    for name, least in (("generator", 0.95), ("discriminator", 0.99), ("r1", 0.99)):
        assert torch.cosine_similarity(found[0][name], found[1][name], dim=0) > least


def test_the_optimizer_is_fused_where_asked(networks):
    phases, options = _OBJECTIVE.phases(), dict.fromkeys(networks, _ADAM)
    for fused in (False, True):
        built = build_optimizers(networks, phases=phases, options=options, fused=fused)
        (group,) = built["generator"].torch.param_groups
        assert bool(group["fused"]) == fused != bool(group["foreach"])
    with pytest.raises(ValueError, match="compile.fused_optimizer: .* radam"):
        options = dict.fromkeys(networks, replace(_ADAM, name="radam"))
        build_optimizers(networks, phases=phases, options=options, fused=True)


def test_channels_last_is_the_layout_of_the_generators_weights(networks):
    Execution(channels_last=True).lay_out(networks, families=_FAMILIES)
    weight = networks["generator"].model.dec["16x16_block0"].conv0.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert networks["discriminator"].discriminators["eye"].mini_discs[0].main[0].main[0].weight_orig.is_contiguous()


@pytest.mark.parametrize(
    ("block", "place"),
    [
        ({"compile": Compile(networks=True, cuda_graphs=True)}, "compile.cuda_graphs: "),
        ({"precision": Precision(tf32=True)}, "precision.tf32: "),
    ],
)
def test_settings_that_a_cpu_does_not_support_are_one_clear_error(block, place):
    run = SimpleNamespace(**({"compile": Compile(), "precision": Precision()} | block))
    with pytest.raises(ValueError, match=place) as error:
        execution_of(run, device=CPU)
    assert "\n" not in str(error.value)


def test_graphs_without_compiled_networks_are_refused():
    assert "compile.networks: true" in obstacle(Execution(cuda_graphs=True), device=torch.device("cuda"))


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "compile.networks: " in obstacle(Execution(networks=True), device=CPU)


@pytest.mark.parametrize(
    ("device", "exact", "found"), [("cuda", False, True), ("cuda", True, False), ("cpu", False, False)]
)
def test_cudnn_compares_its_kernels_on_a_gpu_only(monkeypatch, device, exact, found):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not found)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: exact)
    with fastest_kernels(torch.device(device)):
        assert torch.backends.cudnn.benchmark is found
    assert torch.backends.cudnn.benchmark is not found


class Blur(nn.Module):
    """The smallest network that a compiler has something to fuse in."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return (images * self.weight).sin() + 1


# Its imports also warn of their own deprecation in torch 2.12.
_compiling = pytest.mark.skipif(
    os.environ.get("ONESTEP_COMPILER") != "1" or obstacle(Execution(networks=True), device=CPU) is not None,
    reason="starting torch's compiler takes a minute or more: ONESTEP_COMPILER=1 runs this, with a C++ compiler",
)


def test_generator_features_and_heads_are_compiled_and_nothing_that_is_differentiated_twice(networks, monkeypatch):
    given = {}

    def recorded(function, **options):
        given[function.__qualname__ if hasattr(function, "__qualname__") else type(function).__name__] = options
        return function

    monkeypatch.setattr(torch, "compile", recorded)
    _wrapped(networks, Execution(networks=True))
    assert set(given) == {"Preconditioned", "Projected.frozen_features", "Projected.score"}
    assert all(options == {"dynamic": False, "mode": None} for options in given.values())
    _wrapped(networks, Execution(networks=True, cuda_graphs=True))
    assert all(options["mode"] == "reduce-overhead" for options in given.values())
    assert [phase.name for phase in _OBJECTIVE.phases() if phase.second_order] == ["r1"]


@_compiling
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_computes_and_differentiates_the_same():
    network, images = Blur(), torch.randn(4, 3)
    (view,) = _wrapped({"classifier": network}, Execution(networks=True)).values()
    assert view is not network
    torch.testing.assert_close(view(images), network(images))
    slopes = [torch.autograd.grad(each(images).sum(), network.weight)[0] for each in (view, network)]
    torch.testing.assert_close(*slopes)


@_compiling
@pytest.mark.filterwarnings("ignore")
def test_heads_are_judged_twice_before_one_backward_beside_compiled_features(networks, monkeypatch):
    """With dynamo's own backend, which compiles no kernels but takes the same way."""
    single = _reports(copy.deepcopy(networks), Execution(), steps=2)
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: whole(function, backend="aot_eager", dynamic=False))
    for name, value in _reports(networks, Execution(networks=True), steps=2).items():
        torch.testing.assert_close(value, single[name], rtol=1e-4, atol=1e-6)
