"""Each published recipe at full size, on a CPU: two plain steps and one with the penalty, of two images each.

Deselected unless asked for (`make test-full-size`): minutes, and several GiB of memory and of disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_peers import RUNS, run_document

from onestep.networks import published_architecture
from recipes import RECIPES, recipe
from tiny import density_ratio_run

pytestmark = pytest.mark.full_size

_WORKER = Path(__file__).with_name("full_size_worker.py")

# EDM's published networks (arXiv:2206.00364): constructor arguments and number of parameters.
_NCSNPP = {
    "img_channels": 3,
    "model_type": "SongUNet",
    "model_channels": 128,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "decoder_type": "standard",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
    "augment_dim": 9,
}
_CIFAR = {**_NCSNPP, "img_resolution": 32, "channel_mult": [2, 2, 2], "dropout": 0.13}
_FACES = {**_NCSNPP, "img_resolution": 64, "channel_mult": [1, 2, 2, 2]}
_ADM = {"model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": [1, 2, 3, 4], "dropout": 0.1}
_EDM2 = {"name": "edm2", "img_resolution": 64, "img_channels": 3, "label_dim": 1000}
_TEACHERS = {
    "cifar10_uncond_d2o_f": (_CIFAR, 56_397_827),
    "cifar10_cond_d2o_f": (_CIFAR | {"label_dim": 10}, 56_400_643),
    "afhqv2_d2o_f": (_FACES | {"dropout": 0.25}, 62_761_091),
    "ffhq_d2o_f": (_FACES | {"dropout": 0.05}, 62_761_091),
    "imagenet64_d2o_f": (_ADM | {"img_resolution": 64, "img_channels": 3, "label_dim": 1000}, 295_899_267),
    "cifar10_ddpm_d2o_f": (published_architecture("ddpm-cifar10-32"), 35_746_307),
    "imagenet64_edm2_d2o_f": (_EDM2, 280_209_253),
}
# What D2O-F holds of each generator, by the optimizer's rule of the reference.
_GENERATORS = {
    "cifar10_uncond_d2o_f": (56_395_523, 47_597_568),
    "cifar10_cond_d2o_f": (56_398_339, 47_597_568),
    "afhqv2_d2o_f": (62_758_787, 52_614_144),
    "ffhq_d2o_f": (62_758_787, 52_614_144),
    "imagenet64_d2o_f": (295_899_267, 233_065_920),
    "cifar10_ddpm_d2o_f": (35_746_307, 30_339_712),
    "imagenet64_edm2_d2o_f": (280_209_253, 234_971_136),
}
# Not trained, and yet a part of the heads that follows the training: batch statistics, vectors of the spectral norm.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "weight_u", "weight_v")


def _work(*arguments):
    """Run a task of the worker; this process stays small, because a child's peak begins at its parent's size."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, _WORKER, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]


def _trained(document, *, folder, weights, label, capsys):
    """Train a run with the networks of timm in `weights`; show what it took, return the report and the log."""
    (folder / "run.json").write_text(json.dumps(document))
    _work("train", folder, weights, folder / "run.json", folder / "report.json")
    report = json.loads((folder / "report.json").read_text())
    with capsys.disabled():
        took = f"{report['seconds']:.0f} s for {document['images']} images, peak memory {report['peak_mib']:,} MiB"
        print(f"\n{label}: {took}")
    return report, [json.loads(line) for line in (folder / "state" / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with the networks of timm and a table of class embeddings, all random; 0.9 GB, removed at the end."""
    folder = tmp_path_factory.mktemp("weights")
    _work("weights", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def folder(tmp_path):
    """A folder that is emptied at once: a state of these networks is a GB."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("run", [*RECIPES, "cifar10_ddpm_d2o_f", "imagenet64_edm2_d2o_f"])
def test_plain_steps_and_the_penalty_are_finite_and_move_what_they_should(run, weights, folder, capsys):
    config, parameters = _TEACHERS[run]
    _work("teacher", folder, json.dumps(config))
    assert json.loads((folder / "teacher.json").read_text()) == {"parameters": parameters}

    # Lazy phases wait for their first full interval, so the third step is the first that may have the penalty.
    document = recipe(run) | {"batch": 2, "images": 6, "snapshots": [6]}
    document["objective"] |= {"r1_every": 2}
    report, records = _trained(document, folder=folder, weights=weights, label=run, capsys=capsys)
    with capsys.disabled():
        print(f"{report['parameters']:,} parameters, {100 * report['frozen_share']:.2f} % frozen")
    assert [sorted(record["losses"]) for record in records] == [
        ["discriminator", "generator"],
        ["discriminator", "generator"],
        ["discriminator", "generator", "r1"],
    ]
    for record in records:
        assert record["non_finite"] == 0
        assert None not in (*record["losses"].values(), *record["observed"].values())
    assert report["finite"]
    # Of bfloat16, which the recipe requests, on CUDA devices alone.
    types = [each["generator"] for each in (document["precision"], report["arithmetic"])]
    assert types == ["bfloat16", "float32"]

    total, frozen = _GENERATORS[run]
    assert (report["parameters"], round(report["frozen_share"] * total)) == (total, frozen)
    _assert_held(report, document["discriminator"]["backbones"])
    assert sorted(name for name, share in report["moved"].items() if share == 0) == []
    _assert_moved_whole(report, conditional=document["conditional"])


_DISCRIMINATORS = {
    "stylegan2": {"name": "stylegan2"},
    "pooled features": {"name": "pooled_features", "backbones": ["vgg16"]},
    "one scale": {"name": "projected", "backbones": ["vgg16_bn"], "channels": 64, "resolution": 224, "scales": "last"},
}


@pytest.mark.parametrize("name", _DISCRIMINATORS)
def test_a_step_with_each_discriminator_is_finite_and_moves_it(name, weights, folder, capsys):
    config, _ = _TEACHERS["cifar10_uncond_d2o_f"]
    _work("teacher", folder, json.dumps(config))
    document = recipe("cifar10_uncond_d2o_f") | {"batch": 2, "images": 4, "snapshots": [4]}
    document["objective"] |= {"r1_every": 1, "rows_per_rank": 1.0}
    document |= {
        "discriminator": _DISCRIMINATORS[name],
        "timm": {each: f"{each}.tv_in1k" for each in ("vgg16", "vgg16_bn")},
    }
    report, _ = _trained(document, folder=folder, weights=weights, label=name, capsys=capsys)
    assert report["finite"]
    assert not [key for key, share in report["moved"].items() if key.startswith("discriminator.") and share == 0]


def _assert_held(report, backbones):
    """Frozen weights and what is fixed between backbones and heads: there is some of each, and none has changed."""
    parts = [f"discriminator.{part}.{name}." for part in ("pretrained", "scratch") for name in backbones]
    parts += ["discriminator.readouts.deit_base."] if "deit_base" in backbones else []
    for part in ("generator.", *parts):
        assert any(name.startswith(part) for name in report["held"]), part
    changed = set(report["held_changed"])
    heads = {name for name in report["held"] if name.startswith("discriminator.discriminators.")}
    assert all(name.endswith(_STATISTICS) for name in heads)
    assert changed <= heads


def _assert_moved_whole(report, *, conditional):
    """Nearly every entry of a tensor has moved; of a table of classes, only the rows whose class was drawn."""
    endings = (".embed.weight", ".map_label.weight", ".emb_label.weight")
    tables = {name for name in report["moved"] if name.endswith(endings)}
    assert bool(tables) == conditional
    partly = {name: share for name, share in report["moved"].items() if share < 0.9 and name not in tables}
    assert not partly


@pytest.mark.parametrize("steps", [2, 4])
def test_the_peak_memory_of_a_chain(steps, weights, folder, capsys):
    config, _ = _TEACHERS["cifar10_uncond_d2o_f"]
    _work("teacher", folder, json.dumps(config))
    document = recipe("cifar10_uncond_d2o_f") | {"batch": 2, "images": 6, "snapshots": [6]}
    document["objective"] |= {"r1_every": 2, "steps": steps}
    report, _ = _trained(
        document, folder=folder, weights=weights, label=f"{steps} steps of the generator", capsys=capsys
    )
    assert report["finite"] and not [name for name, share in report["moved"].items() if share == 0]


@pytest.mark.parametrize("kind", ["cd", "ctm", "pd", "rcd"])
def test_a_step_of_each_instance_loss_beside_the_gan_loss_with_lpips(kind, weights, folder, capsys):
    config, _ = _TEACHERS["cifar10_uncond_d2o_f"]
    _work("teacher", folder, json.dumps(config))
    distance = {"name": "lpips", "trunk": "vgg16", "linear": "lpips", "resolution": 224}
    document = recipe("cifar10_uncond_d2o_f") | {"batch": 2, "images": 4, "snapshots": [4]}
    steps = 16 if kind == "pd" else 18
    document["objective"] = {
        "name": "instance",
        "kind": kind,
        "steps": steps,
        "distance": distance,
        "beside": document["objective"],
    }
    document["timm"] |= {"vgg16": "vgg16.tv_in1k"}
    report, records = _trained(document, folder=folder, weights=weights, label=kind, capsys=capsys)
    assert [set(record["losses"]) for record in records] == [{"generator", "discriminator"}] * 2
    assert all(record["observed"]["instance"] > 0 and record["non_finite"] == 0 for record in records)
    assert report["finite"] and min(report["moved"].values()) > 0
    for part in ("teacher.", "distance.", "distance_linear."):
        held = {name for name in report["held"] if name.startswith(part)}
        assert held and not held & set(report["held_changed"]), part


_SCORES = {
    "diff_instruct": {"sigma": 1.0},
    "sid": {"loss": "sid", "alpha": 1.2, "grid": [0.0, 0.8], "scale": 100.0},
    "dmd": {"loss": "dmd", "grid": [0.02, 0.98], "fake_grid": [0.0, 1.0]},
}


@pytest.mark.parametrize(
    ("run", "loss"),
    [*(("cifar10_uncond_d2o_f", loss) for loss in _SCORES), ("cifar10_cond_d2o_f", "sid"), ("imagenet64_d2o_f", "sid")],
)
def test_a_step_of_variational_score_moves_two_networks_and_holds_the_teacher(run, loss, folder, capsys):
    config, _ = _TEACHERS[run]
    _work("teacher", folder, json.dumps(config))
    document = recipe(run) | {"batch": 2, "images": 4, "snapshots": [4], "freeze": [], "preconditioning": "edm"}
    adam = {"name": "adam", "lr": 1e-5, "betas": [0.0, 0.999], "eps": 1e-8}
    document |= {"objective": {"name": "variational_score", **_SCORES[loss]}}
    document |= {"optimizers": {"generator": adam, "fake": adam}, "precision": {"generator": "float32"}}
    del document["discriminator"]
    report, records = _trained(document, folder=folder, weights=folder, label=f"{run}, {loss}", capsys=capsys)
    assert [set(record["losses"]) for record in records] == [{"generator", "fake"}] * 2
    assert all(record["non_finite"] == 0 and None not in record["losses"].values() for record in records)
    assert report["finite"] and min(report["moved"].values()) > 0
    assert {name.partition(".")[0] for name in report["moved"]} == {"generator", "fake"}
    held = {name for name in report["held"] if name.startswith("teacher.")}
    assert held and not held & set(report["held_changed"])


_RATIO_RUNS = ("cifar10_uncond_d2o_f", "cifar10_cond_d2o_f", "imagenet64_d2o_f")


@pytest.mark.parametrize("run", _RATIO_RUNS)
def test_a_step_of_density_ratios_is_finite_and_moves_both_networks(run, weights, folder, capsys):
    config, _ = _TEACHERS[run]
    _work("teacher", folder, json.dumps(config))
    document = recipe(run) | {"batch": 2, "images": 6, "snapshots": [6], "freeze": []}
    objective = {"divergence": "jensen_shannon", "r1": "exact", "r1_gamma": 0.1, "r1_every": 2}
    document = density_ratio_run(document, ratio={"name": "ratio_unet", "weights": "teacher"}, **objective)
    report, records = _trained(document, folder=folder, weights=weights, label=run, capsys=capsys)
    assert [set(record["losses"]) for record in records] == [{"generator", "ratio"}] * 2 + [
        {"generator", "ratio", "r1"}
    ]
    assert all(record["non_finite"] == 0 for record in records)
    assert report["finite"] and min(report["moved"].values()) > 0
    assert {key.split(".")[0] for key in report["moved"]} == {"generator", "ratio"}
    assert not report["held_changed"]


_VECTORS = {"efficientnet_lite0": 1.0, "deit_base": 1.0}
_COUPLED = {
    "frechet": {"decay": 0.5, "warm_start": 8},
    "kernel": {"points": 4, "held_out": 3},
    "drifting": {},
}


@pytest.mark.parametrize("name", _COUPLED)
def test_a_step_of_a_coupled_loss_is_finite_and_moves_the_generator(name, weights, folder, capsys):
    run = "cifar10_uncond_d2o_f"
    config, _ = _TEACHERS[run]
    _work("teacher", folder, json.dumps(config))
    document = recipe(run) | {"batch": 2, "images": 4, "snapshots": [4], "micro_batch": 1}
    document["objective"] = {"name": name, "features": _VECTORS, **_COUPLED[name]}
    document["timm"] = document["timm"] | {"deit_base": "deit_base_distilled_patch16_224.fb_in1k"}
    document["optimizers"] = {"generator": document["optimizers"]["generator"]}
    del document["discriminator"]
    report, records = _trained(document, folder=folder, weights=weights, label=name, capsys=capsys)
    assert [set(record["losses"]) for record in records] == [{"generator"}] * 2
    assert all(record["non_finite"] == 0 and None not in record["observed"].values() for record in records)
    assert report["finite"] and min(report["moved"].values()) > 0
    for part in _VECTORS:
        held = {name for name in report["held"] if name.startswith(f"features_{part}.")}
        assert held and not held & set(report["held_changed"])


@pytest.mark.parametrize("name", [*RUNS, "ladd"])
def test_steps_of_each_further_objective_are_finite_and_hold_what_they_should(name, weights, folder, capsys):
    run = "cifar10_uncond_d2o_f"
    config, _ = _TEACHERS[run]
    _work("teacher", folder, json.dumps(config))
    document = recipe(run) | {"freeze": [], "precision": {"generator": "float32"}}
    if name == "ladd":
        document["objective"] |= {"r1_every": 2}
        document |= {"discriminator": {"name": "teacher_features", "levels": [0, 1, 2]}}
    else:
        document = run_document(document, name)
    document |= {"batch": 2, "images": 6, "snapshots": [6]}
    report, records = _trained(document, folder=folder, weights=weights, label=name, capsys=capsys)
    assert all(record["non_finite"] == 0 and None not in record["losses"].values() for record in records)
    assert {phase for record in records for phase in record["losses"]} >= {"generator"}
    assert report["finite"] and min(report["moved"].values()) > 0
    assert {key.partition(".")[0] for key in report["moved"]} == set(document["optimizers"])
    held = {key for key in report["held"] if key.startswith(("teacher.", "discriminator.teacher."))}
    assert bool(held) == (name not in ("easy_consistency", "relativistic"))
    assert not held & set(report["held_changed"])
