"""The key `fast`: what it sets, what it leaves, and where it is refused."""

from __future__ import annotations

import pytest
import torch
import yaml

from onestep.config import parse_experiment, run_document
from onestep.config.identity import science
from onestep.config.run import FAST, Compile, Precision
from onestep.plan import measured
from onestep.training.execution import execution_of
from tiny import REPOSITORY, tiny_config


def fast(name, **changes):
    config = tiny_config()
    config["runs"][name] |= {"fast": True, **changes}
    return parse_experiment(config)


def test_one_key_sets_the_options_whatever_the_run_or_its_base_says():
    run = fast("digits_d2o", precision={"discriminator": "float32"}).runs["digits_d2o"]
    assert (run.precision, run.compile) == FAST
    layout = fast("digits_d2o", compile={"channels_last": True}).runs["digits_d2o"].compile
    assert layout == Compile(networks=True, cuda_graphs=True, fused_optimizer=True, channels_last=True)


def test_it_leaves_what_the_run_lacks():
    assert fast("digits_edm").runs["digits_edm"].precision == Precision(tf32=True, generator="bfloat16")
    assert fast("digits_backbone").runs["digits_backbone"].precision == Precision(tf32=True)
    slow = {"generator": {"name": "radam", "lr": 1.0e-4}}
    assert not fast("digits_edm", optimizers=slow).runs["digits_edm"].compile.fused_optimizer


def test_a_run_without_it_has_the_run_yaml_of_before_and_one_with_it_spells_the_options_out():
    plain = run_document(parse_experiment(tiny_config()), "digits_d2o")
    assert "fast" not in plain
    document = run_document(fast("digits_d2o"), "digits_d2o")
    assert document["fast"] is True and document["precision"]["tf32"] is True
    assert science(document) != science(plain) and "fast" not in science(document)


def test_every_run_of_the_paper_can_be_fast():
    document = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    for block in document["runs"].values():
        block["fast"] = True
    experiment = parse_experiment(document)
    runs = {name: experiment.runs[name] for name in measured.default_runs(experiment)}
    assert len(runs) == 16 and all((run.precision, run.compile) == FAST for run in runs.values())


def test_on_a_cpu_it_is_one_line_that_names_the_key():
    run = fast("digits_d2o").runs["digits_d2o"]
    with pytest.raises(ValueError, match="`fast:`") as error:
        execution_of(run, device=torch.device("cpu"))
    assert len(str(error.value).splitlines()) == 1
