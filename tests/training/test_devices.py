"""Whole steps, sampling, features and metrics on a GPU without numbers: no tensor stays on the CPU, no types mix.

In the small form the networks are of the recipes' kinds; at full size every recipe of config.yaml runs.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import yaml
from test_coupled import CASES as COUPLED
from test_discriminators import DISCRIMINATORS
from test_peers import RUNS, run_document

from dit_files import SMALL as DIT
from meta_device import META, meta_device
from onestep import components
from onestep.bench import random_run
from onestep.bench.option_sets import option_set
from onestep.bench.random_run import RandomSources, random_wrapped, shape_of
from onestep.checkpoints.snapshot import write_snapshot
from onestep.classifiers import build_classifier
from onestep.config import parse_experiment
from onestep.config.reading import resolved_run
from onestep.distributed import Ranks
from onestep.metrics.density_coverage import DensityCoverage
from onestep.metrics.frechet import FrechetDistance
from onestep.metrics.inception_score import InceptionScore
from onestep.metrics.kernel_distance import KernelDistance
from onestep.metrics.precision_recall import PrecisionRecall
from onestep.networks import _unet
from onestep.sampling import generate
from onestep.training.assembly import build_networks, compose
from onestep.training.coupled import begin_states
from onestep.training.loop import take_step
from onestep.training.sources import codec_of
from onestep.training.step import set_training_mode
from tiny import REPOSITORY, density_ratio_run, tiny_config

_PAPER = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
# Networks and steps of a kind of their own: the recipes, and what the studies compare with them.
_RECIPES = [name for name, run in _PAPER["runs"].items() if "base" not in run] + ["cifar10_ddpm_d2o_f"]
_STUDIED = [
    name for name, run in _PAPER["runs"].items() if "base" in run and run.keys() & {"objective", "discriminator"}
]
_QUICK = ("relativistic", "dmd2_teacher")  # of the further objectives
_RANKS = Ranks(rank=0, world=1, device=META)
_BATCH = 2
_HALF = "bf16_generator+bf16_discriminator"
_SETS = ("ours", "reference", "bf16_generator", _HALF, f"{_HALF}+channels_last")
# Few blocks of the width of one attention head, and small networks of timm of the same kinds.
_SMALL = {"model_channels": 64, "channel_mult": [1, 1], "num_blocks": 1}
_SMALL_BACKBONES = {
    "vgg16_bn": "vgg11_bn.tv_in1k",
    "efficientnet_lite0": "test_efficientnet.r160_in1k",
    "deit_base": "test_vit.r160_in1k",
}


@pytest.fixture(autouse=True)
def on_meta():
    with meta_device():
        yield


@pytest.fixture
def small_paper(monkeypatch):
    """The paper's config with small networks."""
    published = random_run.published_architecture
    monkeypatch.setattr(random_run, "published_architecture", lambda name: {**published(name), **_SMALL})
    config = copy.deepcopy(_PAPER)
    for name, small in _SMALL_BACKBONES.items():
        config["backbones"][name]["timm"] = small
    for run in (each for each in config["runs"].values() if "resolution" in (each.get("discriminator") or {})):
        first = run["discriminator"]["backbones"][:1]
        run["discriminator"] = {**run["discriminator"], "backbones": first, "resolution": 160}  # of the transformer
    return config


def _training(config, run, *, options):
    """Return a run with its networks on the meta device, its dataset on the CPU, and the networks as phases call them.

    The options of `precision:` are set here, because a run may not have all of them on a device that is no GPU.
    """
    experiment = parse_experiment(config)
    shape, chosen = shape_of(experiment, run, given={}), option_set(options)
    resolved = resolved_run(experiment, run)
    ours = replace(replace(chosen, precision={}).applied_to(resolved.run), batch=_BATCH)
    sources = RandomSources(experiment=experiment, run=ours, shape=shape)
    with META:
        built = build_networks(ours, sources=sources, shape=shape)
    classes = shape.classes if ours.conditional or ours.classifier is not None else 0
    training = compose(
        replace(resolved, run=ours),
        built=built,
        codec=codec_of(ours),
        pixels=torch.zeros(8, shape.channels, shape.resolution, shape.resolution, dtype=torch.uint8),
        conditions=torch.eye(classes)[torch.arange(8) % classes] if classes else None,
        ranks=_RANKS,
    )
    families = {"generator": "networks", "discriminator": "discriminators"}
    half = frozenset(families[name] for name, kind in chosen.precision.items() if kind == "bfloat16")
    training = replace(training, execution=replace(training.execution, bfloat16=half))
    set_training_mode(training.networks, phases=training.phases)
    return training, random_wrapped(training, options=chosen)


def _take_a_step_with_every_phase(config, run, *, options):
    training, wrapped = _training(config, run, options=options)
    begin_states(training, ranks=_RANKS, most=64)
    due = np.lcm.reduce([phase.every for phase in training.phases])
    reports = take_step(training, images_seen=int(due) * _BATCH, ranks=_RANKS, wrapped=wrapped)
    assert {report.name for report in reports} == {phase.name for phase in training.phases}
    for report in reports:
        assert report.loss.device == META and report.loss.dtype == torch.float32
    for optimizer in training.optimizers.values():
        for parameter in optimizer.parameters:
            moments = [value for value in optimizer.torch.state[parameter].values() if value.shape == parameter.shape]
            assert {parameter.grad.device, *(each.device for each in moments)} == {META}
    for average in training.averages.values():
        assert {value.device for value in average.state().values()} == {META}
    return training


@pytest.mark.parametrize("run", ["digits_backbone", "digits_edm", "digits_d2o"])
def test_a_whole_step_of_the_demo_runs_on_one_device(run):
    _take_a_step_with_every_phase(tiny_config(), run, options="ours")


def test_a_whole_step_of_a_regression_on_pairs_runs_on_one_device():
    config = tiny_config()
    config["runs"]["mapping"] = {
        **{"base": "digits_edm", "network": None, "teacher": "digits", "init": {"from": "digits"}},
        "objective": {"name": "paired_regression", "distance": {"name": "l2"}},
        "pairs": {"sampler": "heun", "seeds": ["1000-1019"]},
    }
    _take_a_step_with_every_phase(config, "mapping", options="ours")


@pytest.mark.parametrize("case", COUPLED)
def test_the_start_and_a_whole_step_of_a_coupled_loss_run_on_one_device(case):
    config = tiny_config()
    run = {key: value for key, value in config["runs"]["digits_d2o"].items() if key != "discriminator"}
    objective = dict(COUPLED[case])
    if objective["name"] == "kernel":
        objective |= {"unit": "one"} | ({"held_out": 4} if "held_out" in objective else {})  # no median of zeros
    adam = run["optimizers"]["generator"]
    config["runs"]["coupled"] = run | {"objective": objective, "optimizers": {"generator": adam}, "batch": 4}
    training = _take_a_step_with_every_phase(config, "coupled", options="ours")
    state = training.states.get("generator", {})
    assert {each.device for each in state.values()} == ({META} if objective["name"] != "drifting" else set())


@pytest.mark.parametrize("steps", [2, 4])
def test_a_whole_step_of_a_chain_runs_on_one_device(steps):
    config = tiny_config()
    config["runs"]["chain"] = {"base": "digits_d2o", "objective": {"steps": steps, "r1_every": 1}}
    _take_a_step_with_every_phase(config, "chain", options=_HALF)


@pytest.mark.parametrize(
    ("options", "conditional"),
    [
        ({}, True),
        ({"loss": "dmd", "fake_grid": [0.0, 1.0]}, False),
        ({"loss": "sid", "alpha": 1.0, "grid": [0.0, 0.8]}, True),
    ],
)
def test_a_whole_step_of_variational_score_runs_on_one_device(options, conditional):
    config = tiny_config()
    for run in ("digits_edm", "digits_d2o", "digits_d2o_f"):
        config["runs"][run]["conditional"] = conditional
    config["runs"]["scores"] = {"base": "digits_d2o", "preconditioning": "edm", "discriminator": None}
    config["runs"]["scores"] |= {"optimizers": {"discriminator": None, "fake": {"name": "adam", "lr": 1e-5}}}
    config["runs"]["scores"]["objective"] = {**options, "name": "variational_score", "sigma": 2.5}
    _take_a_step_with_every_phase(config, "scores", options="bf16_generator")


@pytest.mark.parametrize("name", [name for name in DISCRIMINATORS if name != "projected"])
def test_a_whole_step_with_each_discriminator_runs_on_one_device(name):
    config = tiny_config()
    config["runs"]["digits_d2o"]["discriminator"] = DISCRIMINATORS[name]
    _take_a_step_with_every_phase(config, "digits_d2o", options=_HALF)


@pytest.mark.parametrize(
    "name", [each if each in _QUICK else pytest.param(each, marks=pytest.mark.long) for each in RUNS]
)
def test_a_whole_step_of_each_further_objective_runs_on_one_device(name):
    config = tiny_config()
    config["runs"]["digits_d2o"] = run_document(config["runs"]["digits_d2o"], name)
    _take_a_step_with_every_phase(config, "digits_d2o", options=_HALF)


@pytest.mark.full_size
@pytest.mark.parametrize("run", ["cifar10_uncond_d2o", "imagenet64_d2o"])
@pytest.mark.parametrize("name", RUNS)
def test_a_whole_step_of_each_further_objective_at_full_size_runs_on_one_device(name, run, monkeypatch):
    monkeypatch.setattr(_unet, "plain_attention", _unet.fused_attention)
    config = copy.deepcopy(_PAPER)
    config["runs"]["peer"] = run_document(config["runs"][run], name)
    _take_a_step_with_every_phase(config, "peer", options=_HALF)


def test_a_whole_step_of_density_ratios_runs_on_one_device():
    config = tiny_config()
    objective = {"divergence": "jensen_shannon", "normalise": 0.5, "r1": "exact", "r1_gamma": 0.1, "r1_every": 2}
    run = density_ratio_run(config["runs"]["digits_d2o"], ratio={"name": "ratio_unet"}, **objective)
    config["runs"]["ratio"] = run
    training = _take_a_step_with_every_phase(config, "ratio", options=_HALF)
    assert set(training.optimizers) == {"generator", "ratio"}


def test_a_whole_step_of_a_unet2d_runs_on_one_device():
    config = tiny_config()
    blocks = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
    network = {"name": "unet2d", "block_out_channels": [8, 16], "norm_num_groups": 4, **blocks}
    config["runs"]["digits_edm"]["network"] = {**network, "preconditioning": "ddpm"}
    for run in ("digits_d2o", "digits_d2o_f"):
        del config["runs"][run]["preconditioning"]
    training = _take_a_step_with_every_phase(config, "digits_d2o_f", options=_HALF)
    assert training.networks["generator"].preconditioning == "ddpm"


@pytest.mark.parametrize("options", [_HALF, "reference"])
def test_a_whole_step_of_a_sit_runs_on_one_device(options):
    config = tiny_config()
    network = {key: value for key, value in DIT.items() if not key.startswith(("img_", "label_"))}
    config["runs"]["digits_edm"]["network"] = {**network, "preconditioning": "flow"}
    heads = {"discriminator": {"name": "teacher_features"}, "freeze": ["F2"]}
    config["runs"]["digits_d2o_f"] |= heads
    for run in ("digits_d2o", "digits_d2o_f"):
        del config["runs"][run]["preconditioning"]
    training = _take_a_step_with_every_phase(config, "digits_d2o_f", options=options)
    assert training.networks["generator"].preconditioning == "flow"


@pytest.mark.long
def test_a_whole_step_of_density_ratios_with_classes_runs_on_one_device(small_paper, monkeypatch):
    monkeypatch.setattr(_unet, "plain_attention", _unet.fused_attention)
    document = small_paper["runs"]["imagenet64_d2o"]
    objective = {"divergence": "reverse_kl", "r1": "exact", "r1_gamma": 0.1}
    small_paper["runs"]["ratio"] = density_ratio_run(document, ratio={"name": "ratio_unet"}, **objective)
    _take_a_step_with_every_phase(small_paper, "ratio", options=f"{_HALF}+channels_last")


@pytest.mark.parametrize(
    ("run", "options"),
    [
        ("cifar10_cond_d2o", "reference"),
        ("imagenet64_d2o_f", f"{_HALF}+channels_last"),
    ],
)
def test_a_whole_step_of_a_small_recipe_runs_on_one_device(run, options, small_paper, monkeypatch):
    if options != "reference":  # a GPU attends in one kernel
        monkeypatch.setattr(_unet, "plain_attention", _unet.fused_attention)
    _take_a_step_with_every_phase(small_paper, run, options=options)


@pytest.mark.full_size
@pytest.mark.parametrize("options", _SETS)
@pytest.mark.parametrize("run", _RECIPES)
def test_a_whole_step_of_a_recipe_runs_on_one_device(run, options, monkeypatch):
    monkeypatch.setattr(_unet, "plain_attention", _unet.fused_attention)
    _take_a_step_with_every_phase(_PAPER, run, options=options)


@pytest.mark.full_size
@pytest.mark.parametrize("family", _STUDIED)
def test_a_whole_step_of_each_study_s_arm_runs_on_one_device(family, monkeypatch):
    monkeypatch.setattr(_unet, "plain_attention", _unet.fused_attention)
    run = next(name for name in parse_experiment(_PAPER).runs if name.split(".")[0] == family)
    _take_a_step_with_every_phase(_PAPER, run, options=f"{_HALF}+channels_last")


def _sample(training, block):
    network = training.networks["generator"].eval()
    network.image_type = None
    sampler = components.build("sampling", block)
    (made,) = generate(network, sampler, seeds=range(3), batch=64)
    assert made.pixels.shape == (3, network.img_resolution, network.img_resolution, network.img_channels)
    assert made.pixels.device.type == "cpu" and made.pixels.dtype == torch.uint8


def test_samplers_run_on_one_device(small_paper):
    training, _ = _training(small_paper, "cifar10_cond_d2o", options="ours")
    for name in ("one_step", "churn256"):
        block = _PAPER["samplers"][name]
        _sample(training, block | ({"steps": 2} if "steps" in block else {}))


@pytest.mark.full_size
@pytest.mark.parametrize("run", _RECIPES)
def test_samplers_of_a_recipe_run_on_one_device(run):
    training, _ = _training(_PAPER, run, options="ours")
    for block in _PAPER["samplers"].values():
        _sample(training, block | ({"steps": 3} if "steps" in block and block["name"] != "chain" else {}))


_TIMM = {
    "clip": {"model_name": "vit_base_patch32_clip_quickgelu_224", "num_classes": 512},
    "dinov2": {"model_name": "vit_large_patch14_dinov2", "num_classes": 0},
    "vgg16": {"model_name": "vgg16", "num_classes": 0},
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip", {"precision": "bfloat16"}),
        *(pytest.param(name, {}, marks=pytest.mark.full_size) for name in _TIMM),
        pytest.param("dinov2", {"precision": "bfloat16"}, marks=pytest.mark.full_size),
        pytest.param("vgg16", {"precision": "bfloat16"}, marks=pytest.mark.full_size),
    ],
)
def test_feature_networks_of_timm_run_on_one_device(name, options, monkeypatch, tmp_path):
    with META:
        weights = timm.create_model(**_TIMM[name]).state_dict()
    monkeypatch.setattr("onestep.features._networks.read_published_weights", lambda path: weights)
    extractor = components.build("features", {"name": name, **options}, weights=tmp_path / "none.safetensors")
    for size in (32, 64):
        _look(extractor, torch.zeros(65, 3, size, size, dtype=torch.uint8))


@pytest.mark.parametrize("layer", ["pool", pytest.param("spatial", marks=pytest.mark.full_size)])
def test_inception_runs_on_one_device(layer, golden, monkeypatch, tmp_path):
    shapes = golden.json("inception_names.json")["state_dict"]
    weights = {name: torch.zeros(*shape) for name, shape in shapes.items()}
    monkeypatch.setattr("onestep.features.inception.read_published_weights", lambda path: weights)
    block = {"name": "inception", "layer": layer}
    extractor = components.build("features", block, weights=tmp_path / "none.safetensors")
    found = _look(extractor, torch.zeros(3, 3, 32, 32, dtype=torch.uint8))
    assert found.probabilities is None or found.probabilities.device == META


def test_a_classifier_runs_on_one_device(tmp_path):
    config = {"name": "convnet", "resolution": 16, "channels": 1, "classes": 10, "width": 8}
    write_snapshot(tmp_path / "eye.safetensors", build_classifier(config).state_dict(), config)
    extractor = components.build("features", {"name": "classifier"}, weights=tmp_path / "eye.safetensors")
    _look(extractor, torch.zeros(101, 1, 16, 16, dtype=torch.uint8))


def _look(extractor, pixels):
    found = extractor(pixels.to(META))
    assert found.features.device == META and found.features.dtype == torch.float32
    assert found.features.shape[0] == len(pixels)
    return found


@pytest.mark.parametrize(
    "metric",
    [
        FrechetDistance(),
        KernelDistance(subsets=2, subset_images=10),
        PrecisionRecall(),
        PrecisionRecall(arithmetic="float16"),
        DensityCoverage(),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_metrics_of_two_sets_compute_where_the_features_are(metric):
    generated, real = torch.zeros(2000, 16, device=META), torch.zeros(1500, 16, device=META)
    assert set(metric(generated=generated, real=real)) >= set(metric.values)


def test_the_inception_score_computes_where_the_probabilities_are():
    assert "inception_score" in InceptionScore(splits=3)(probabilities=torch.zeros(100, 10, device=META))


def test_the_device_refuses_what_a_gpu_refuses():
    images, weight = torch.zeros(1, 3, 8, 8, device=META), torch.zeros(4, 3, 3, 3)
    convolve = torch.nn.functional.conv2d
    with pytest.raises(RuntimeError, match="of the CPU"):
        convolve(images, weight)
    with pytest.raises(RuntimeError, match="expected one"):
        convolve(images, weight.to(META, torch.bfloat16))
    with pytest.raises(TypeError):
        images.numpy()
    with torch.autocast("meta", dtype=torch.bfloat16):
        assert convolve(images, weight.to(META)).dtype == torch.bfloat16
        with torch.autocast("meta", enabled=False):
            assert convolve(images, weight.to(META)).dtype == torch.float32
    assert not images.cpu().any() and float(images.sum()) == 0
