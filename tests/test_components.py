"""Components by name: files of the package, classes from outside, entry points; and their outlines without torch."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys

import pytest

from login_node import said
from onestep import components
from tiny import REPOSITORY

OUTSIDE = '''
"""A metric from outside."""
from typing import ClassVar, Literal
import torch

class Sharpness:
    """Mean gradient."""
    values: ClassVar[dict] = {"sharpness": "higher"}
    def __init__(self, *, order: Literal["first", "second"] = "first", power: float) -> None:
        if power < 1:
            raise ValueError(f"power: got {power}, expected 1 or more")
        self.power = power
    @property
    def least_images(self):
        return int(2 * self.power)
    @torch.no_grad()
    def __call__(self, *, pixels):
        return {"sharpness": float(pixels.mean())}

class ByPosition:
    def __init__(self, power): ...

class WithCorridor:
    def __init__(self, **options): ...

def function(): ...
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A working directory with a module; it is importable during the test alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_metrics.py").write_text(OUTSIDE)
    yield tmp_path
    sys.modules.pop("my_metrics", None)


def test_choices_are_the_files_of_the_family():
    folder = REPOSITORY / "src" / "onestep" / "metrics"
    assert components.choices("metrics") == tuple(sorted(path.stem for path in folder.glob("[!_]*.py")))
    assert components.choices("sampling") == ("chain", "ddpm", "guided", "heun", "one_step")


def test_a_component_of_the_package_is_built_from_its_block():
    sampler = components.build("sampling", {"name": "heun", "steps": 4, "rho": 5.0})
    assert (sampler.steps, sampler.rho, sampler.sigma_max) == (4, 5.0, 80.0)
    assert components.module_of("sampling", "heun") == "onestep.sampling.heun"


def test_a_class_from_outside_is_loaded_built_and_described(outside):
    block = {"name": "my_metrics:Sharpness", "power": 2.0}
    metric = components.build("metrics", block)
    assert (type(metric).__name__, metric.power) == ("Sharpness", 2.0)
    described = components.describe("metrics", block["name"])
    assert described.parameters["power"] == components.Parameter(hint=float)
    assert described.parameters["power"].is_required and not described.parameters["order"].is_required
    assert described.constants == {"values": {"sharpness": "higher"}}
    assert described.doc == "Mean gradient."
    assert components.module_of("metrics", block["name"]) == "my_metrics"


def test_an_entry_point_is_a_choice(outside, monkeypatch):
    point = importlib.metadata.EntryPoint(name="sharp", value="my_metrics:Sharpness", group="onestep.metrics")
    monkeypatch.setattr(components, "entry_points", lambda: importlib.metadata.EntryPoints([point]))
    assert "sharp" in components.choices("metrics") and "sharp" not in components.choices("sampling")
    assert components.build("metrics", {"name": "sharp", "power": 3.0}).power == 3.0
    assert components.module_of("metrics", "sharp") == "my_metrics"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("fid", ("fid", "frechet")),
        ("_arrays", ("_arrays", "frechet")),
        ("../metrics/frechet", ("frechet",)),
        ("no_such_module:Metric", ("no_such_module",)),
        ("my_metrics.inner:Metric", ("my_metrics.inner",)),
        ("my_metrics:Sharpnes", ("my_metrics", "Sharpnes", "Sharpness")),
        ("my_metrics:function", ("my_metrics:function", "class")),
        ("my_metrics:ByPosition", ("my_metrics:ByPosition", "power")),
        ("my_metrics:WithCorridor", ("my_metrics:WithCorridor", "options")),
        ("subprocess:Popen", ("subprocess:Popen", "args")),
        (":Metric", (":Metric", "module:Class")),
        ("my_metrics:", ("my_metrics:", "module:Class")),
    ],
)
@pytest.mark.parametrize("function", [components.load, components.outline, components.describe])
def test_a_name_of_no_component_is_refused_in_one_line(outside, name, parts, function):
    with pytest.raises(ValueError) as caught:
        function("metrics", name)
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message


@pytest.mark.parametrize(
    ("block", "part"),
    [
        ({"name": "heun", "steps": 4, "stesp": 3}, "stesp"),
        ({"name": "heun", "steps": 1}, "steps"),
        ({"steps": 4}, "name"),
        ({"name": 3}, "3"),
    ],
)
def test_wrong_options_are_refused_in_one_line(block, part):
    for build in (components.build, components.build_outline):
        with pytest.raises(ValueError) as caught:
            build("sampling", block)
        assert part in str(caught.value) and "\n" not in str(caught.value)


def test_a_mistake_in_a_file_from_outside_is_shown_as_it_is(outside):
    (outside / "my_metrics.py").write_text("import onestep.no_such_part\n")
    for function in (components.load, components.outline):
        with pytest.raises(ModuleNotFoundError, match=r"onestep\.no_such_part"):
            function("metrics", "my_metrics:Sharpness")


ON_A_LOGIN_NODE = """
import sys
from onestep import components
metric = components.build_outline("metrics", {"name": "my_metrics:Sharpness", "power": 2.0})
print(metric.least_images, components.is_outline(type(metric)), components.describe("metrics", "my_metrics:Sharpness"))
try:
    components.build_outline("metrics", {"name": "my_metrics:Sharpness", "power": 0.5})
except ValueError as error:
    print(error)
heun = components.build_outline("sampling", {"name": "heun", "steps": 18})
print(heun.nfe)
d2o = {"name": "d2o", "loss": "hinge", "sigma": 80.0, "rows_per_rank": 64.0, "r1_gamma": 0.1, "r1_every": 16}
print([phase.trains for phase in components.build_outline("objectives", d2o).phases()])
try:
    components.build_outline("objectives", d2o | {"sigma": -1.0})
except ValueError as error:
    print(error)
assert not {"torch", "onestep.objectives"} & sys.modules.keys()
assert not [name for name in sys.modules if "outline" in name]
"""


def test_an_outline_has_the_checks_and_the_arithmetic_that_need_no_torch(outside):
    number, power, nfe, roles, sigma = said("-c", ON_A_LOGIN_NODE, within=outside).splitlines()
    described = components.describe("metrics", "my_metrics:Sharpness")
    assert number == f"4 True {described}"
    assert power == "power: got 0.5, expected 1 or more"
    assert nfe == "35"
    assert roles == "['generator', 'discriminator', 'discriminator']"
    assert sigma.startswith("sigma -1.0")


def test_looking_at_components_imports_nothing_that_computes():
    program = "import sys; from onestep import components; components.choices('metrics'); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"


def test_every_description_has_the_parameters_of_the_signature():
    for family in ("sampling", "metrics", "networks"):
        for name in components.choices(family):
            described = components.describe(family, name)
            assert list(described.parameters) == list(inspect.signature(components.load(family, name)).parameters)
