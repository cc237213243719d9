"""The bench: every set asked for is measured or left out with its reason."""

from __future__ import annotations

import json
import weakref

import pytest
import torch

from onestep.bench.option_sets import OPTION_SETS, option_set
from onestep.bench.random_run import random_training, random_wrapped, shape_of
from onestep.bench.recording import read_benchmarks
from onestep.bench.timing import Contestant, paired_ratio
from onestep.cli import main
from onestep.config import parse_experiment
from onestep.distributed import Ranks
from onestep.training.footprint import ALLOWANCE
from onestep.training.nowhere import flop_counter
from tiny import tiny_config, write_config

_RANKS = Ranks(rank=0, world=1, device=torch.device("cpu"))


@pytest.fixture
def config():
    return tiny_config()


def test_a_tiny_run_prints_all_columns_and_what_is_left_out_with_its_reason(config, tmp_path, capsys):
    path = write_config(tmp_path, config)
    sets = "reference,ours,bf16_generator+bf16_discriminator,cuda_graphs,all"
    arguments = ["bench", "train", "--config", str(path), "--run", "digits_d2o_f", "--batch", "4", "--steps", "2"]
    arguments += ["--micro-batch", "4"]
    written = ["--output", str(tmp_path / "bench.json"), "--record", str(tmp_path / "records")]
    assert main([*arguments, "--sets", sets, *written]) == 0
    said = capsys.readouterr().out
    columns = [
        "set",
        "images/s",
        "ratio",
        "generator",
        "discriminator",
        "r1",
        "rest",
        "peak memory",
        "estimated",
        "utilisation",
    ]
    assert f"| {' | '.join(columns)} |" in said and "random weights" in said
    rows = [line for line in said.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| reference", "| ours", "| bf16_generator+bf16_discriminator"]
    for name in ("cuda_graphs", "all"):
        assert f"Left out: {name}: compile.cuda_graphs: " in said
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["weights"] == "random" and found["batch"] == 4 and len(found["left_out"]) == 2
    for each in found["sets"]:
        assert sum(each["shares"].values()) == pytest.approx(1) and each["utilisation"] > 0
        assert each["images_per_second"] == pytest.approx(4 / sum(each["seconds"].values()))
        assert len(each["every_round"]) == 2
    (record,) = read_benchmarks(tmp_path / "records")
    assert record["name"] == "bench_train_digits_d2o_f" and record["machine"]["gpu"] is None
    assert record["images_per_second"] == record["numbers"]["ours.images_per_second"]
    assert record["numbers"]["ours.images_per_second"] == found["sets"][1]["images_per_second"]
    assert record["numbers"]["all.left_out"] == found["left_out"][1]["reason"]
    assert found["sets"][0]["ratio"] == 1 and found["sets"][2]["peak_type"] == "bfloat16"


def test_all_is_every_option_and_sets_can_be_joined():
    whole = option_set("all")
    assert whole.precision == {"tf32": True, "generator": "bfloat16", "discriminator": "bfloat16"}
    assert set(whole.compile) == {"networks", "cuda_graphs", "fused_optimizer", "channels_last"}
    assert all(option_set(name).name == name for name in OPTION_SETS)
    assert option_set("tf32+compile").number_type == "tf32"
    with pytest.raises(ValueError, match="'tf33', .*reference, ours, tf32"):
        option_set("tf33")


def contestant(experiment, name, *, micro_batch=None):
    options, shape = option_set(name), shape_of(experiment, "digits_d2o_f", given={})
    torch.manual_seed(3)
    training = random_training(
        experiment, "digits_d2o_f", options=options, shape=shape, batch=4, ranks=_RANKS, micro_batch=micro_batch
    )
    wrapped = random_wrapped(training, options=options)
    return Contestant(options=options, training=training, wrapped=wrapped, ranks=_RANKS, resident=0)


def test_the_reference_goes_another_way_to_the_same_gradients(config):
    config["runs"]["digits_d2o_f"]["objective"]["r1_gradient"] = "forward_mode"
    experiment = parse_experiment(config)
    reference, ours = (contestant(experiment, name, micro_batch=2) for name in ("reference", "ours"))
    for each in (reference, ours):
        each.warm_up(steps=1)
    trained = {role: each.parameters for role, each in ours.training.optimizers.items()}
    for role, parameters in trained.items():
        others = reference.training.optimizers[role].parameters
        largest = max(float(each.grad.abs().max()) for each in parameters)
        for one, other in zip(parameters, others, strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4 * largest)
    counts = {each.options.name: each.count() for each in (reference, ours)}
    # Two derivatives of the backbones, and the 1x1 convolutions on four times as many pixels.
    assert all(counts["reference"][phase] > counts["ours"][phase] for phase in ("discriminator", "r1"))
    assert reference.training.run.objective.options["r1_gradient"] == "double_backward"


class Sets:
    """Counts the trainings that live, and refuses one set as a GPU without memory does."""

    def __init__(self):
        self.known, self.most = [], 0

    def build(self, *arguments, **options):
        if options["options"].name == "reference":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        training = random_training(*arguments, **options)
        self.known.append(weakref.ref(training))
        self.most = max(self.most, sum(each() is not None for each in self.known))
        return training


def test_sets_without_memory_are_a_row_and_no_more_than_two_are_held(config, tmp_path, monkeypatch, capsys):
    sets = Sets()
    monkeypatch.setattr("onestep.bench.train.random_training", sets.build)
    path = write_config(tmp_path, config)
    names = "reference,ours,channels_last,recompute"
    words = ["bench", "train", "--config", str(path), "--run", "digits_d2o_f", "--batch", "4", "--steps", "1"]
    assert main([*words, "--micro-batch", "2", "--sets", names, "--output", str(tmp_path / "x.json")]) == 0
    said = capsys.readouterr().out
    assert "| reference | out of memory | - |" in said and "--micro-batch 1" in said
    found = json.loads((tmp_path / "x.json").read_text())
    assert [each["name"] for each in found["sets"]] == names.split(",")[1:] and found["micro_batch"] == 2
    assert found["sets"][0]["ratio"] == 1 and all(each["memory_mib"] > 0 for each in found["sets"])
    assert sets.most == 2


def test_a_bench_starts_with_images_that_fit(config, tmp_path, monkeypatch):
    monkeypatch.setattr("onestep.bench.train.device_memory", lambda device: ALLOWANCE + (64 << 20))
    path = write_config(tmp_path, config)
    words = ["bench", "train", "--config", str(path), "--run", "digits_edm", "--batch", "96", "--steps", "1"]
    assert main([*words, "--sets", "ours", "--output", str(tmp_path / "x.json")]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    assert 24 <= found["micro_batch"] < 64 and found["batch"] == 96
    assert found["sets"][0]["estimated_mib"] in range(48, 65)


def test_the_shape_comes_from_the_command_line_the_teacher_or_the_dataset(config):
    experiment = parse_experiment(config)
    assert shape_of(experiment, "digits_d2o", given={}) == (16, 1, 10)
    assert shape_of(experiment, "digits_d2o", given={"resolution": 32}) == (32, 1, 10)
    config["inputs"] |= {"edm_cifar10_32x32_uncond_ve": {"file": "x.pkl"}, "zip": {"file": "x.zip"}}
    config["datasets"]["other"] = {"name": "image_zip", "input": "zip"}
    config["teachers"]["other"] = {"pickle": "edm_cifar10_32x32_uncond_ve"}
    config["runs"]["digits_d2o"] |= {"teacher": "other"}
    config["runs"]["digits_edm"] |= {"dataset": "other"}
    del config["tables"]
    changed = parse_experiment(config)
    assert shape_of(changed, "digits_d2o", given={}) == (32, 3, 0)
    with pytest.raises(ValueError, match="resolution and channels of the dataset other"):
        shape_of(changed, "digits_edm", given={})


def test_operations_are_counted_through_a_gradient_of_a_gradient():
    weight, images = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)

    def work():
        (slope,) = torch.autograd.grad((images @ weight.t()).square().sum(), images, create_graph=True)
        slope.square().sum().backward()

    with flop_counter() as once:
        images @ weight.t()
    with flop_counter() as counter:
        work()
    assert once.get_total_flops() == 2 * 3 * 4 * 5
    assert counter.get_total_flops() > 3 * 2 * 3 * 4 * 5


def test_ratios_are_of_rounds():
    slow, quick = [{"a": 4.0}, {"a": 8.0}, {"a": 6.0}], [{"a": 2.0}, {"a": 4.0}, {"a": 1.0}]
    assert paired_ratio(slow, quick) == 2.0
    assert paired_ratio(slow, slow) == 1.0


def test_an_unknown_run_is_one_line(config, tmp_path, capsys):
    path = write_config(tmp_path, config)
    assert main(["bench", "train", "--config", str(path), "--run", "x"]) == 1
    message = capsys.readouterr().err
    assert "'x'" in message and "digits_backbone" in message and len(message.splitlines()) == 1
