"""The steps of `make gpu` on a CPU, in small sizes: they run, and find what a change would break."""

from __future__ import annotations

import json
import math
import zipfile

import pytest
import torch
import yaml

from gpu import correctness, evaluation, speed, trial, wheels
from gpu.measured_run import MeasuredRun, comparison
from gpu.runner import bounds_in_words, carry_out, main, read_plan, run_part, verdict
from onestep.bench.recording import read_benchmarks
from onestep.config.reading import read_experiment
from tiny import REPOSITORY, tiny_config, tiny_network, write_config

CPU = torch.device("cpu")
RUN = "digits_d2o_f"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return str(write_config(tmp_path_factory.mktemp("config"), tiny_config()))


def _all(found):
    return {name: value for numbers in found for name, value in numbers.items()}


def test_gradients_and_updates_of_equal_runs_are_equal(config):
    found = _all(correctness.gradients(CPU, run=RUN, config=config))
    phases = {name.partition(".")[0] for name in found}
    assert phases == {"generator", "discriminator", "r1"}
    for phase in phases:
        assert found[f"{phase}.error"] == found[f"{phase}.loss"] == 0
        assert found[f"{phase}.gradient"] == pytest.approx(1) == found[f"{phase}.update"]


def test_an_update_in_another_direction_is_found(config):
    plain = MeasuredRun.build(config, RUN, options="ours", rows=2, device=CPU).effects()
    turned = {
        name: effect._replace(updates=[each.flip(0) for each in effect.updates]) for name, effect in plain.items()
    }
    found = dict(comparison(plain, turned))
    assert found["generator.gradient"] == pytest.approx(1)
    assert found["generator.update"] < 0.9


@pytest.mark.full_size
def test_a_set_that_fails_is_a_finding_of_its_own(config):
    found = _all(correctness.options(CPU, run=RUN, sets=["bf16_discriminator", "cuda_graphs"], config=config))
    assert 0.9 < found["bf16_discriminator.discriminator.gradient"] < 1
    assert found["cuda_graphs.outcome"].startswith("ValueError: compile.cuda_graphs")


def test_the_collectives_change_nothing_in_a_group_of_one(config):
    found = _all(correctness.collectives(CPU, run=RUN, config=config))
    assert found.pop("broadcast_tensors") > 50
    assert found == {"broadcast_changed": 0, "average": 0.5, "highest": 7, "gathered_differs": 0}


def test_samples_on_a_cpu_have_one_precision():
    found = _all(correctness.precision_of_samples(CPU, network=tiny_network(), images=8))
    assert found == {"tf32_bytes_differ": 0, "generate_bytes_differ": 0}


def test_the_loop_and_sampling_are_timed(config):
    found = _all(speed.loop(CPU, run=RUN, sets="ours", rows=2, steps=2, config=config))
    assert found["images_per_second"] == pytest.approx(2e3 / found["milliseconds"])
    found = _all(speed.runs(CPU, runs={RUN: 2, "absent": 2}, steps=1, config=config))
    assert set(found) == {f"{RUN}.images_per_second", "absent.outcome"} and found[f"{RUN}.images_per_second"] > 0
    found = _all(evaluation.sampling(CPU, images=64, config=tiny_network()))
    assert found["images_per_second"] == pytest.approx(64 / found["seconds"])


@pytest.mark.full_size
def test_metrics_are_those_of_the_cpu(config):
    assert set(_all(correctness.repeated(CPU, run=RUN, config=config)).values()) == {0.0}
    found = _all(evaluation.metrics(CPU, images=1_200, on_cpu=1_100, width=8, subsets=1))
    assert {found[f"{name}.differs"] for name in ("frechet", "pr", "kernel")} == {0.0}


@pytest.mark.full_size
def test_inception_features_are_timed():
    assert _all(evaluation.inception(CPU, images=8))["images_per_second"] > 0


@pytest.mark.full_size
@pytest.mark.parametrize("run", ["cifar10_uncond_d2o_f", "imagenet64_d2o_f"])
def test_steps_at_full_size(run):
    found = _all(correctness.gradients(CPU, run=run, config=str(REPOSITORY / "config.yaml"), rows=2))
    assert found["generator.error"] == 0


@pytest.mark.full_size
def test_the_trial_trains_and_measures_and_does_nothing_twice(tmp_path, config):
    pytest.importorskip("sklearn")
    from importlib.resources import files

    (options,) = (dict(step.options) for step in read_plan()["evaluation"] if step.name == "trial_digits")
    options |= {"config": config, "work": str(tmp_path / "work"), "seeds": "0-63"}
    options["source"] = str(files("sklearn") / "datasets/data/digits.csv.gz")
    found = _all(trial.trial(CPU, **options))
    assert {name for name in found if name.endswith(".frechet")} == {
        f"{column}.frechet" for column in ("teacher", "teacher_one_step", "d2o", "d2o_f")
    }
    assert all(math.isfinite(value) for value in found.values())
    (tmp_path / "work" / "data.zip").unlink()
    assert _all(trial.trial(CPU, **options)) == found


def test_marked_tests_are_counted_as_they_end(tmp_path):
    path = tmp_path / "test_marked.py"
    marked = {"passes": "pass", "fails": "assert False", "skips": "pytest.skip('no')", "errs": "pass"}
    lines = ["import pytest", "@pytest.fixture", "def broken():", "    raise ValueError"]
    for name, body in marked.items():
        lines += ["@pytest.mark.gpu", f"def test_{name}({'broken' if name == 'errs' else ''}): {body}"]
    path.write_text("\n".join([*lines, "def test_of_no_gpu(): assert False"]) + "\n", encoding="utf-8")
    found = _all(correctness.tests(CPU, paths=[str(path)]))
    assert (found["passed"], found["skipped"], found["failed"]) == (1, 1, 2)
    assert {name for name in found if name.startswith("failure")} == {"failure 1", "failure 2"}
    path.write_text("import nothing_of_this_name\n", encoding="utf-8")
    found = _all(correctness.tests(CPU, paths=[str(path)]))
    assert found["passed"] == 0 and (found["failed"] or found["outcome"])


def test_packages_below_the_least_version_of_the_project_are_installed(tmp_path, monkeypatch):
    wheel = tmp_path / "timm-1.0.31-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("timm/__init__.py", "")
        file.writestr("timm-1.0.31.dist-info/METADATA", "Metadata-Version: 2.1\nName: timm\nVersion: 1.0.31\n")
        file.writestr("timm-1.0.31.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("timm-1.0.31.dist-info/RECORD", "")
    for there, installed in (("1.0.29", True), ("1.0.31", False), ("1.1.0", False), ("2.0.0", True)):
        monkeypatch.setattr(wheels, "version", lambda name, found=there: found)
        target = tmp_path / there
        assert wheels.install(tmp_path, target) == 0
        assert (target / "timm" / "__init__.py").exists() == installed


def test_a_trial_without_its_images_is_left_out(tmp_path, config):
    found = _all(trial.trial(CPU, config=config, source=str(tmp_path / "x"), work=str(tmp_path), measured={}))
    assert found["outcome"].startswith("left out")


def test_the_plan_names_functions_runs_and_sets_that_exist():
    import importlib

    from onestep.bench.option_sets import option_set

    experiment = read_experiment(REPOSITORY / "config.yaml")
    names = [step.record for steps in read_plan().values() for step in steps]
    assert len(names) == len(set(names))
    for steps in read_plan().values():
        for step in steps:
            module, _, function = step.call.partition(":")
            assert callable(getattr(importlib.import_module(f"gpu.{module}"), function))
            run = step.options.get("run")
            config = step.options.get("config", "config.yaml")
            several = step.options.get("runs", {})
            assert run is None or run in experiment.runs
            assert not several or set(several) <= set(read_experiment(REPOSITORY / config).runs)
            sets = step.options.get("sets", [])
            for name in [sets] if isinstance(sets, str) else sets:
                option_set(name)
            assert 0 < step.seconds <= 600 and all(set(each) <= {"low", "high"} for each in step.expected.values())


def test_verdicts():
    assert verdict(2.0, {"low": 1, "high": 3}) == "as expected" == verdict(0, {"high": 0})
    assert (verdict(0.5, {"low": 1}), verdict(4, {"high": 3}), verdict(None, {})) == ("lower", "higher", "no number")
    assert [bounds_in_words(each) for each in ({"low": 1, "high": 2}, {"low": 7, "high": 7}, {"high": 0.5})] == [
        "1 to 2",
        "7",
        "at most 0.5",
    ]


def test_without_a_gpu_there_is_one_line_and_no_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["speed", "--records", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1 and "GPU" in printed.err
    assert list(tmp_path.iterdir()) == []
    assert main(["nothing"]) == 2


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """A plan of one quick step and one that fails."""
    quick = {"call": "correctness:precision_of_samples", "options": {"network": tiny_network(), "images": 2}}
    expected = {"tf32_bytes_differ": {"high": 0}, "absent": {"low": 1}}
    fails = {"call": "correctness:repeated", "options": {"run": "nothing"}}
    common = {"about": "A step.", "seconds": 600}
    plan = {"quick": {**common, **quick, "expected": expected}, "fails": {**common, **fails, "expected": {}}}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"correctness": plan}, sort_keys=False))
    monkeypatch.setenv("ONESTEP_GPU_PLAN", str(path))
    return read_plan(path)["correctness"]


def test_a_part_is_bounded_recorded_and_not_repeated(tmp_path, capsys, steps):
    given = {"gpu": None, "records": tmp_path / "records", "work": tmp_path / "work", "device": "cpu"}
    assert run_part(steps[:1], seconds=600, **given) == 1  # one number is absent
    (record,) = read_benchmarks(tmp_path / "records")
    assert record["name"] == "gpu_correctness_quick" and record["numbers"]["tf32_bytes_differ"] == 0
    assert record["details"]["expected"] == {"tf32_bytes_differ": {"high": 0}, "absent": {"low": 1}}
    printed = capsys.readouterr().out
    assert "as expected: tf32_bytes_differ is 0" in printed and "no number: absent" in printed
    # Nothing is left of the time; what was done needs none of it.
    assert run_part(steps, seconds=0, **given) == 1
    printed = capsys.readouterr().out
    assert printed.count("done before") == 1 and printed.count("left for another run") == 1
    assert len(read_benchmarks(tmp_path / "records")) == 1


def test_what_fails_is_a_number_of_its_step(tmp_path, steps):
    found = tmp_path / "found.jsonl"
    carry_out(steps[1], device="cpu", found=found, work=tmp_path, records=tmp_path)
    assert "nothing" in json.loads(found.read_text())["outcome"]
