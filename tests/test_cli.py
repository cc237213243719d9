"""The command line: every verb has help, and an error of the user is one line and an exit code that is not 0."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import onestep
from onestep.cli import GROUPS, main
from onestep.launch.local import command_line
from tiny import REPOSITORY, tiny_config, write_config

VERBS = {name: place for verbs in GROUPS.values() for name, (place, _) in verbs.items()}
SAMPLE = ["sample", "--seeds", "0-1", "--output", "o"]
EVALUATE = ["evaluate", "images", "o.json"]
EXTRACT = ["extract", "--features", '{"name": "classifier"}', "--weights", "text.pkl", "--output", "o"]


def function_of(verb):
    module, _, name = VERBS[verb].partition(":")
    return getattr(importlib.import_module(module), name)


def test_every_verb_of_every_package_is_gathered():
    package = REPOSITORY / "src" / "onestep"
    for path in package.rglob("*verbs.py"):
        module = ".".join(("onestep", *path.relative_to(package).with_suffix("").parts))
        source = importlib.import_module(module)
        public = [
            name
            for name, each in vars(source).items()
            if inspect.isfunction(each) and each.__module__ == module and not name.startswith("_")
        ]
        helpers = {"feature_network", "sampling_job"}
        assert {f"{module}:{name}" for name in public if name not in helpers} <= set(VERBS.values())


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_describes_every_option_with_its_default(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert main([*verb.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    function = function_of(verb)
    assert inspect.getdoc(function).splitlines()[0].replace("`", "") in " ".join(shown.split())
    for name, parameter in inspect.signature(function).parameters.items():
        option = f"--{name.strip('_').replace('_', '-')} "
        spelled = {
            parameter.POSITIONAL_ONLY: name.upper(),
            parameter.POSITIONAL_OR_KEYWORD: f"{name.upper()} {option}",
            parameter.VAR_POSITIONAL: name.upper(),
        }.get(parameter.kind, option)
        (line,) = [each for each in shown.splitlines() if each.strip("│* ").startswith(spelled)]
        if parameter.kind is parameter.VAR_POSITIONAL:
            continue
        required = parameter.default is parameter.empty
        assert ("[required]" if required else "[default: ") in line
        assert len(line.partition(spelled)[2].split("[")[0].split()) >= 3, "described in words"


def test_the_overview_lists_all_verbs_in_groups_without_importing_torch():
    program = "import sys; from onestep.cli import main; code = main(['--help']); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", f"{program}; sys.exit(code)"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = " ".join(shown.replace("│", " ").split())  # long summaries are wrapped
    for title, verbs in GROUPS.items():
        assert title in shown
        for name, (_, summary) in verbs.items():
            assert f" {name.split()[0]} " in words and summary.rstrip(".") in words


LIGHT = ["resolve", "status", "fetch", "show", "doctor"]


@functools.cache
def light_verbs():
    """Return the light verbs after which a new process had not imported torch, which would stay from then on."""
    program = f"import sys; from onestep.cli import main\nfor verb in {LIGHT}: main([verb, '--help']); "
    program += "print(verb, 'torch' in sys.modules, file=sys.stderr)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    return [line.removesuffix(" False") for line in said.splitlines() if line.endswith(" False")]


@pytest.mark.parametrize("verb", LIGHT)
def test_a_light_verb_starts_without_torch(verb):
    assert verb in light_verbs()


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == onestep.__version__


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ""),
        (["sampel"], "sampel"),
        (["sample"], "--weights"),
        (["measure", "--metric", "{"], "--metric"),
        (["measure", "--metrics", "{}", "--output", "x.json"], "--metrics"),
        ([*SAMPLE, "--weights", "w", "--sampler", "{}", "--seeds", "5"], "--seeds"),
        (["train", "--backbone", "a"], "--"),
        ([*SAMPLE, "--weights", "w", "--sampler", "heum18"], "heun"),
        ([*SAMPLE, "--weights", "w", "--sampler", "[1]"], "--sampler"),
        ([*EVALUATE, "--metrics", "frechet,recal"], "precision_recall"),
        ([*EVALUATE, "--metrics", "frechet", "--features", "inceptoin"], "Did you mean inception?"),
        (EVALUATE, "--metrics"),
        (["compare", "a.json"], "SECOND"),
        (["cancel"], "RUN"),
        (["bench"], ""),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(capsys, arguments, named):
    assert main(arguments) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*SAMPLE, "--weights", "absent.safetensors", "--sampler", '{"name": "one_step"}'], "absent.safetensors"),
        ([*SAMPLE, "--weights", "x", "--sampler", '{"name": "two_step"}'], "two_step"),
        (["convert", "--source", "text.pkl", "--output", "o.safetensors"], "text.pkl"),
        ([*EXTRACT, "--images", "text.pkl"], "text.pkl"),
        (["prepare", "--dataset", '{"name": "cifar10"}', "--source", "text.pkl", "--output", "o"], "text.pkl"),
        (["resolve", "--config", "absent.yaml", "--run", "r", "--output", "o"], "absent.yaml"),
    ],
)
def test_an_error_of_the_user_is_one_line(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pkl").write_text("hello")
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"onestep {arguments[0]}: ") and named in line
    assert not (tmp_path / "o").exists() and not (tmp_path / "o.safetensors").exists()


def test_ctrl_c_is_exit_code_130(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("onestep.report.verbs.compare", interrupted)
    assert main(["compare"]) == 130


def words(text):
    return text.split()


READ = {
    "fetch": (
        ["--only", "a", "b", "--only", "c", "--source", '{"file": "x"}', "--list"],
        {"only": ["a", "b", "c"], "source": {"file": "x"}, "list": True},
    ),
    "train": (
        words("--run r --data d --state s --output o --backbone a=x b=y --backbone c=z=w --rows-per-pass 8"),
        {
            "run": Path("r"),
            "data": Path("d"),
            "state": Path("s"),
            "output": Path("o"),
            "backbone": {"a": Path("x"), "b": Path("y"), "c": Path("z=w")},
            "rows_per_pass": 8,
        },
    ),
    "evaluate": (
        words("--images i --weights w --output o --features {} --metrics") + ['{"a": 1}', '{"b": 2}'],
        {
            "images": Path("i"),
            "weights": Path("w"),
            "output": Path("o"),
            "features": {},
            "metrics": [{"a": 1}, {"b": 2}],
        },
    ),
    "evaluate with names": (
        words("i o.json --features inception --metrics frechet,precision_recall my_module:MyClass") + ['{"name": "x"}'],
        {
            "images": Path("i"),
            "output": Path("o.json"),
            "features": {"name": "inception"},
            "metrics": [{"name": n} for n in ("frechet", "precision_recall", "my_module:MyClass", "x")],
        },
    ),
    "sample with names": (
        words("digits_d2o out.png --class 3 --sampler heun18"),
        {
            "weights": Path("digits_d2o"),
            "output": Path("out.png"),
            "class_": "3",
            "sampler": {"name": "heun", "steps": 18},
        },
    ),
    "sample": (
        words("--weights w --output o --seeds 3-5 --batch 2 --sampler {}"),
        {"weights": Path("w"), "output": Path("o"), "seeds": range(3, 6), "batch": 2, "sampler": {}},
    ),
}


@pytest.mark.parametrize("verb", READ)  # and a word on how
def test_options_become_typed_values(verb, monkeypatch):
    arguments, expected = READ[verb]
    verb = verb.partition(" ")[0]
    module, _, name = VERBS[verb].partition(":")
    function, received = function_of(verb), {}

    signature = inspect.signature(function)

    def spy(*values, **options):
        received.update(signature.bind(*values, **options).arguments)
        return 85

    spy.__signature__, spy.__annotations__ = signature, get_type_hints(function)
    monkeypatch.setattr(f"{module}.{name}", spy)
    assert main([verb, *arguments]) == 85
    assert received == expected
    assert main(command_line(verb, received)) == 85 and received == expected


def test_ranks_are_started_with_the_same_options_but_no_further_processes():
    options = {"run": Path("r"), "processes": 2, "cache": None, "code_in_spec": True, "seeds": range(4)}
    assert command_line("train", options) == ["train", "--run", "r", "--code-in-spec", "--seeds", "0-3"]


def test_python_m_onestep_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "onestep", "show"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2 and "TABLE" in done.stderr


def test_a_wrong_config_stops_the_workflow_before_any_job(tmp_path):
    config = tiny_config()
    config["runs"]["digits_d2o"]["objective"]["r1_gamma"] = "1e-4"
    config["runs"]["digits_d2o_f"]["objective"]["r1_gama"] = 1.0
    write_config(tmp_path, config)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--directory", str(tmp_path), "--cores", "1"]
    stopped = subprocess.run(command, capture_output=True, text=True)
    assert stopped.returncode == 1
    for place in ("runs.digits_d2o.objective.r1_gamma", "runs.digits_d2o_f.objective.r1_gama"):
        assert any(line.startswith(f"config.yaml: {place}") for line in stopped.stderr.splitlines())
    assert "Traceback" not in stopped.stderr and not (tmp_path / "results").exists()


def test_a_verb_can_be_called_from_python(tmp_path, capsys):
    from onestep.report.verbs import show

    (tmp_path / "t.md").write_text("| a |\n")
    assert show(tmp_path / "t.json") == 0
    assert capsys.readouterr().out.startswith("| a |")


@pytest.mark.skipif(sys.platform != "linux", reason="of the C library of Linux")
def test_memory_of_one_step_serves_the_next():
    code = """
import resource
import numpy as np
from onestep.cli import main
main(["status", "--help"])
faults = []
for _ in range(3):
    arrays = [np.ones(1 << 19) for _ in range(10)]
    del arrays
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[0])
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(ran.stdout.split()[-1]) < 1000  # else 20 arrays of 1,024 pages
