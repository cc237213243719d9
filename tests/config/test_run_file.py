"""run.yaml: its bytes, its values, and the packages that reading it needs."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from types import MappingProxyType

import pytest
import yaml
from changed_demo import D2O, DEMO, demo_with

from onestep.config import parse_experiment, read_experiment, resolved_run, run_document
from onestep.config.run import Optimizer, Schedule, dump_run, load_run, run_of, to_document
from onestep.plan import measured
from tiny import REPOSITORY

# SHA-256 of run.yaml of each run, recorded before the dataclasses of onestep.config.run existed.
RECORDED = {
    "config.yaml": {
        "cifar10_uncond_d2o": "1095073934e0f203392da47676ea53142559fba30b790da9a0c4f0705b6cd03e",
        "cifar10_uncond_d2o_f": "9ca9c6b3528b303b2d67c49dd25e803431f7d871c6aec99078dc89796eb2e0b9",
        "cifar10_cond_d2o": "9da673d31f646ee7f4222dd8453bcaab963e4d31a89a3b06ca2411500ca49e7f",
        "cifar10_cond_d2o_f": "9652e896c0205729b3f899ec9322fcb8260768067a1ae321cffaf8718adad226",
        "afhqv2_d2o": "2597edf1609ac259608cc94cc7721998867d692303dfd2fe7146d50782c07c75",
        "afhqv2_d2o_f": "37e2216c22e45b0ba24f8c29a9d5feaff9924d9050b569b5ac991d431057fd7d",
        "ffhq_d2o": "9f7d6e2e3f9f67e28e2d7cb6d426627edcdefcf6a63de9924004596bd362b4f1",
        "ffhq_d2o_f": "5e445cf5eb9b98eabfeb6b754400edf35cad5b02c143c9e06166e775985da8dc",
        "imagenet64_d2o": "3b82166d744be6bd0b106ace9fdba1349be2eb00cdfac52137b1701a99167c3f",
        "imagenet64_d2o_f": "824df3b3f532e392ccd6bef895b2f4700f1a6d18fa8cec253a06574744f4112c",
        "cifar10_ddpm_d2o": "6fbaf8174a9812e358bf49d38c6d063df62b005a689d4775db701b25689dcafa",
        "cifar10_ddpm_d2o_f": "ce2a48673d8c9df02c1ce25d1eefb1c000602f83e4b3cc7d7ef4dbe3ea5ff35c",
        "ddpm_start.sigma=14.6": "61d14da45804b61ab0462526b8d90ef136cc90180b71528585e3c36dddba9e61",
        "ddpm_start.sigma=80.0": "fd2627dfe56b77a51edb9c11d3840d12a1eb04c267ae38f0fe67b39657431217",
        "imagenet64_edm2_d2o": "d906c449b4bc936eda28a674d82862beffdddf614576a4053baab2c938463bad",
        "imagenet64_edm2_d2o_f": "b00e269ca18abc2fef1763f320cfe87bf2f6ba89428fe9be5fb53196433221eb",
    },
    "demo/config.yaml": {
        "digits_backbone": "83ddfcc61e6e94d9fa3472ba730033d7e35a82ec8ec056a96c1c7eed21730aa5",
        "digits_metric": "e558e4b433c52a64c70397baaf5aa8eeeb35e85f9d7eafb2314c74b79bc22736",
        "digits_edm": "6669e6557431cd0e3e3a86512d32d1b1e825321d0f9b328e2fbbef7b3441328d",
        "digits_d2o": "af103ecbeaec0c99b17531c57be5814ea448205c712d0f22a84869186ea879b7",
        "digits_d2o_f": "bc4c1c5cdc4478f2a49b3f58bdf29a97503e95ec95f25cada7eb9662530af878",
    },
    "trials/cifar10.yaml": {
        "trial_backbone": "552935292de91837956313bedc9f817c1cb8e7de14c0997403f39b8ade44af05",
        "trial_metric": "aa72bcb86bbe10b3512d922590ccb8efb6324eb5cbfb3bc1dd0f38c3cb06e0fd",
        "trial_edm": "01f9560cf73ecf40938bfb883098b6f9688972de2ce8a5c633aadb69ba832b36",
        "trial_d2o_f": "e8ecaf4e092455b8d65855ad2ffd0f022c89a6a34babe85b3750434f8430ef5c",
    },
    "trials/cifar10_cpu.yaml": {
        "trial_backbone": "b4cc9ab7899823eb132c710f8c8c0ad1f75d68aa4a21a547527718434fe15c48",
        "trial_metric": "779c1249a748c5fc0787af9fa3ff2118f0a92996358b04e1b0cdcdd52caa54a7",
        "trial_edm": "e393790f6c83fff85bcc612289fa8558bb1adadc106bec6ed563908f088fe87c",
        "trial_d2o_f": "2b4395b63cdc18c8bf37d6a386a66c10f54be72ca1743a8b8d63bfa1072a7c2a",
    },
}


@pytest.mark.parametrize("config", RECORDED)
def test_the_bytes_of_run_yaml_are_those_recorded(config):
    experiment = read_experiment(REPOSITORY / config)
    texts = {run: dump_run(resolved_run(experiment, run)) for run in measured.default_runs(experiment)}
    assert {run: hashlib.sha256(text.encode()).hexdigest() for run, text in texts.items()} == RECORDED[config]
    for run, text in texts.items():
        assert yaml.safe_load(text) == run_document(experiment, run)


@pytest.mark.parametrize("config", RECORDED)
def test_run_yaml_is_read_back_into_the_same_values(config, tmp_path):
    experiment = read_experiment(REPOSITORY / config)
    for run, value in experiment.runs.items():
        path = tmp_path / f"{run}.yaml"
        path.write_text(dump_run(resolved_run(experiment, run)))
        read = load_run(path)
        assert read == resolved_run(experiment, run)
        assert read.run == value
        assert read.snapshots == value.snapshots
        assert dump_run(read) == path.read_text()


def test_values_read_back_cannot_be_changed(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(dump_run(resolved_run(read_experiment(DEMO), "digits_edm")))
    run = load_run(path).run
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 1
    for mapping in (run.optimizers, run.network.options):
        assert isinstance(mapping, MappingProxyType)
    assert run.network.options["channel_mult"] == (1, 2)


OPTIONS = {
    "name": "adamw",
    "weight_decay": 0.1,
    "clip_norm": 1.0,
    "schedule": {"name": "cosine", "warmup": 1000, "final": 0.1},
}


def test_new_options_are_read_and_are_absent_at_their_defaults():
    before = run_document(parse_experiment(demo_with({})), "digits_d2o")["optimizers"]["generator"]
    assert not {"weight_decay", "clip_norm", "schedule"} & before.keys()
    document = demo_with({f"{D2O}.optimizers.generator": {**before, **OPTIONS}})
    resolved = resolved_run(parse_experiment(document), "digits_d2o")
    assert resolved.run.optimizers["generator"] == Optimizer(
        name="adamw",
        lr=before["lr"],
        betas=tuple(before["betas"]),
        eps=before["eps"],
        weight_decay=0.1,
        clip_norm=1.0,
        schedule=Schedule(name="cosine", warmup=1000, final=0.1),
    )
    assert run_of(yaml.safe_load(dump_run(resolved))) == resolved


def test_a_run_yaml_of_an_older_version_takes_the_defaults():
    document = run_document(read_experiment(DEMO), "digits_d2o")
    for key in ("precision", "compile"):
        del document[key]
    del document["ema"]["others"]
    assert run_of(document) == resolved_run(read_experiment(DEMO), "digits_d2o")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"bacth": 1}, "bacth"),
        ({"ema": {"half": 1.0}}, "ema"),
        ({"ema": 3}, "ema"),
        ({"run": None}, "run"),
        ({"optimizers": {"generator": {"lr": 1.0, "betas": [0.0, 0.9], "eps": 0.1, "nesterov": True}}}, "nesterov"),
    ],
)
def test_a_file_that_is_no_resolved_run_is_refused_in_one_line(change, place, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_document(read_experiment(DEMO), "digits_d2o") | change))
    with pytest.raises(ValueError) as caught:
        load_run(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and place in message and "\n" not in message


def test_a_file_without_a_mapping_is_refused_in_one_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="list"):
        load_run(path)


def test_run_yaml_is_read_without_pydantic(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(dump_run(resolved_run(read_experiment(DEMO), "digits_d2o")))
    program = """
import sys
import onestep.config
from onestep.config.run import dump_run, load_run
print(dump_run(load_run(sys.argv[1])), end="")
assert not {"pydantic", "pydantic_core", "torch", "annotated_types"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == path.read_text()


def test_documents_leave_out_what_is_none_and_put_options_beside_the_name():
    block = to_document(read_experiment(DEMO).runs["digits_edm"].network)
    assert (block["name"], block["model_channels"], block["preconditioning"]) == ("song_unet", 16, "edm")
    assert None not in block.values() and "options" not in block
