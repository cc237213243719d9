"""Counted launches: what is a kernel, what a graph saves, and what the paper's recipes need."""

from __future__ import annotations

import json

import pytest
import torch

from onestep.bench.launches import LaunchCounter, bench_launches, launches_of_lists
from onestep.bench.option_sets import option_set
from onestep.bench.random_run import shape_of
from onestep.bench.recording import read_benchmarks
from onestep.cli import main
from onestep.config import read_experiment
from recipes import RECIPES
from tiny import REPOSITORY, tiny_config, write_config

META = torch.device("meta")


def counted(work):
    with LaunchCounter() as counter:
        work()
    return counter.taken()


def test_views_are_free_and_computations_are_not():
    one, other = torch.empty(4, 6, device=META), torch.empty(6, 4)
    assert counted(lambda: one.t().reshape(3, 8)[1:].detach()) == 1  # the reshape copies
    assert counted(lambda: (one + 1) * 2) == 2
    assert counted(lambda: other + 1) == 0
    assert counted(lambda: one.copy_(other.t(), non_blocking=True)) == 1


def test_a_recorded_function_is_a_launch_and_its_backward_another():
    weight, images = torch.ones(6, 3, device=META, requires_grad=True), torch.ones(4, 6, device=META)
    with LaunchCounter() as counter:
        half = counter.recorded(lambda x: (x @ weight).sin().exp())
        first, second = half(images), half(images)
        assert counter.taken() == 2
        (first.square().sum() + second.sum()).backward()
        outside = counter.taken()
        assert weight.grad.shape == (6, 3)
    plain = counted(lambda: (images @ weight).sin().exp().sum().backward())
    assert plain > 5
    # square, two sums, their addition; backward: both graphs, and the gradient of the square and of the sums.
    assert 2 + 4 <= outside <= 12


@pytest.mark.parametrize(
    ("sizes", "lists", "launches"),
    [([8] * 110, 1, 1), ([8] * 111, 1, 2), ([8] * 110, 2, 2), ([320 * 65536], 1, 1), ([320 * 65536 + 1], 1, 2)],
)
def test_lists_are_split_as_torch_splits_them(sizes, lists, launches):
    assert launches_of_lists([[torch.empty(size, device=META) for size in sizes]] * lists) == launches


def test_lists_of_other_layouts_take_a_kernel_a_tensor():
    plain = [torch.empty(2, 3, 4, 4, device=META) for _ in range(5)]
    last = [each.to(memory_format=torch.channels_last) for each in plain]
    assert launches_of_lists([plain, plain]) == 1 and launches_of_lists([plain, last]) == 5


def test_the_command_counts_a_run_and_graphs_take_less_than_half(tmp_path, capsys):
    path, output = write_config(tmp_path, tiny_config()), tmp_path / "launches.json"
    arguments = ["bench", "launches", "--config", str(path), "--run", "digits_d2o_f", "--batch", "4"]
    kept = ["--output", str(output), "--record", str(tmp_path / "records")]
    assert main([*arguments, "--sets", "ours,fast,compile", *kept]) == 0
    said = capsys.readouterr().out
    assert "| set | rest | generator | discriminator | r1 | average step | ratio |" in said and "not measured" in said
    found = json.loads(output.read_text())
    ours, fast = found["sets"]
    assert ours["ratio"] == 1 and fast["ratio"] < 0.5
    assert fast["launches"]["r1"] <= ours["launches"]["r1"]
    assert [each["name"] for each in found["left_out"]] == ["compile"]
    (record,) = read_benchmarks(tmp_path / "records")
    assert record["name"] == "bench_launches_digits_d2o_f"
    assert record["numbers"]["fast.step"] == fast["step"] and "compile.left_out" in record["numbers"]


def test_an_unknown_run_is_one_line(tmp_path, capsys):
    path = write_config(tmp_path, tiny_config())
    assert main(["bench", "launches", "--config", str(path), "--run", "x"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.full_size
@pytest.mark.parametrize("run", RECIPES)
def test_a_step_of_the_paper_takes_less_than_half_of_its_launches_with_graphs(run, capsys):
    experiment = read_experiment(REPOSITORY / "config.yaml")
    shape = shape_of(experiment, run, given={})
    found = bench_launches(
        experiment, run, sets=[option_set("bf16_generator"), option_set("fast")], shape=shape, batch=32
    )
    eager, fast = found["sets"]
    with capsys.disabled():
        print(f"\n{run}: {eager['step']:,.0f} launches a step, {fast['step']:,.0f} with `fast`")
    assert fast["step"] <= min(2_500, eager["step"] / 2)
