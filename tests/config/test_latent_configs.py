"""Configs of runs on latents: the codec of a dataset is that of its runs; what needs pixels names a dataset of them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from autoencoder_folders import CODEC, SMALL, latent_config
from onestep.config import ConfigError, parse_experiment
from onestep.config.known import shape_of
from onestep.config.reading import run_document
from onestep.config.run import to_document
from onestep.plan import Plan
from onestep.plan.inputs import needed_inputs, teacher_options
from onestep.plan.sample import codec_files, decoded_models
from onestep.plan.train import train_rules
from tiny import tiny_config, write_config


@pytest.fixture
def config(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(SMALL))
    return latent_config(tiny_config(), folder=tmp_path / "vae")


def test_a_run_has_the_codec_of_its_dataset(config):
    experiment = parse_experiment(config)
    document = run_document(experiment, "digits_d2o")
    assert document["codec"] == {**CODEC, "posterior": "sample"}
    assert document["codec"] == to_document(experiment.datasets["latents"].options["codec"])
    assert "codec" not in run_document(experiment, "digits_backbone")
    assert shape_of(experiment, "latents") == (8, 4, 10)


def test_its_files_are_inputs_of_the_jobs(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = Plan.read(str(write_config(tmp_path, config).relative_to(tmp_path)))
    codec = Path("results/codecs/vae.safetensors")
    rules = {rule.name: rule for rule in train_rules(plan)}
    assert codec in rules["digits_d2o"].weights and f"--codec {codec}" in rules["digits_d2o"].options
    assert codec not in rules["digits_backbone"].weights
    assert set(needed_inputs(plan)) == {"digits", "vae"}
    assert codec_files(plan, "digits_d2o@320") == codec_files(plan, "digits") == [codec]
    assert re.fullmatch(decoded_models(plan), "digits_edm@320")
    assert not re.fullmatch(decoded_models(plan), "digits_backbone@320")


def test_a_teacher_from_outside_names_its_codec(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config["inputs"]["outside"] = {"file": "outside.pkl"}
    config["teachers"]["outside"] = {"weights": "outside", "codec": CODEC}
    config["tables"]["digits"]["rows"].append({"teacher": "outside", "sampler": "heun"})
    plan = Plan.read(str(write_config(tmp_path, config).relative_to(tmp_path)))
    options = shlex.split(teacher_options(plan, "outside"))
    assert options[0] == "--codec" and json.loads(options[1]) == {**CODEC, "posterior": "sample"}
    assert codec_files(plan, "outside") == [Path("results/codecs/vae.safetensors")]
    assert teacher_options(plan, "digits") == ""
    config["teachers"]["digits"]["codec"] = CODEC
    with pytest.raises(ConfigError, match=r"teachers\.digits\.codec: .*Fix: remove it"):
        parse_experiment(config)


def _remove_default(config, **codec):
    config["runs"]["digits_edm"]["codec"] = {**CODEC, **codec}


def _from_outside(config):
    config["datasets"]["latents"] = {"name": "latent_zip", "input": "vae"}


def _instance(config):
    run = config["runs"]["digits_d2o"]
    run["objective"] = {"name": "frechet", "features": {"digits": 1.0}}
    run["optimizers"] = {"generator": run["optimizers"]["generator"]}
    del run["discriminator"]


CHANGES = {
    "another scaling": (lambda c: _remove_default(c, latents="stable_diffusion", means=None), "codec"),
    "other means": (lambda c: _remove_default(c, means=[0.0] * 4), "runs.digits_edm.codec.means"),
    "no codec": (_from_outside, "runs.digits_edm.codec"),
    "an unknown input": (lambda c: c["datasets"]["latents"]["codec"].update(input="vea"), "codec.input"),
    "an unknown option": (lambda c: c["datasets"]["latents"]["codec"].update(scale=2), "codec.scale"),
    "an unknown codec": (lambda c: c["datasets"]["latents"]["codec"].update(name="vq"), "codec.name"),
    "no input": (lambda c: c["datasets"]["latents"]["codec"].pop("input"), "codec.input"),
    "pixels with a codec": (lambda c: c["runs"]["digits_edm"].update(dataset="digits", codec=CODEC), "codec"),
    "a table of latents": (lambda c: c["tables"]["digits"].update(dataset="latents"), "tables.digits.dataset"),
    "latents of latents": (
        lambda c: c["datasets"].update(more={**c["datasets"]["latents"], "dataset": "latents"}),
        "datasets.more.dataset",
    ),
    "feature networks": (_instance, "runs.digits_d2o.objective.name"),
    "an unsuitable network": (
        lambda c: c["runs"]["digits_edm"]["network"].update(channel_mult=[1] * 5),
        "runs.digits_edm.network",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused(config, change):
    alter, named = CHANGES[change]
    alter(config)
    with pytest.raises(ConfigError) as caught:
        parse_experiment(config)
    lines = str(caught.value).splitlines()
    assert any(named in line for line in lines), lines
    assert all(line.count("Fix:") <= 1 for line in lines)


def test_latents_from_outside_need_a_codec_of_the_run(config):
    _from_outside(config)
    for name in ("digits_edm", "digits_d2o", "digits_d2o_f"):
        config["runs"][name]["codec"] = CODEC
    experiment = parse_experiment(config)
    assert shape_of(experiment, "latents") == (None, None, None)
