"""Each file of a family keeps the family's contract from the day it appears."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing

import pytest

from onestep import components

FAMILIES = (
    "augmentations",
    "classifiers",
    "data",
    "discriminators",
    "ratios",
    "distances",
    "features",
    "metrics",
    "networks",
    "objectives",
    "sampling",
)
FILES = [(family, name) for family in FAMILIES for name in components.choices(family)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_offers_choices_and_says_what_they_are(family):
    assert components.choices(family)
    assert importlib.import_module(f"onestep.{family}").__doc__


@pytest.mark.parametrize(("family", "name"), FILES)
def test_a_file_exports_one_documented_class_of_its_own(family, name):
    module = importlib.import_module(f"onestep.{family}.{name}")
    assert len(module.__all__) == 1
    choice = components.load(family, name)
    assert inspect.isclass(choice)
    assert choice.__module__ == module.__name__
    assert module.__doc__ and choice.__doc__
    assert not choice.__doc__.startswith(f"{choice.__name__}("), "a dataclass without a docstring of its own"


@pytest.mark.parametrize(("family", "name"), FILES)
def test_a_constructor_names_and_annotates_its_options(family, name):
    choice = components.load(family, name)
    options = inspect.signature(choice).parameters.values()
    # Fields of a dataclass may be those of a base in another module.
    resolved = typing.get_type_hints(choice if dataclasses.is_dataclass(choice) else choice.__init__)
    for option in options:
        assert option.name in resolved, f"{option.name} has no annotation"
        assert option.kind is option.KEYWORD_ONLY, f"{option.name} may be given by position, or is a corridor"


@pytest.mark.parametrize("name", components.choices("augmentations"))
def test_an_augmentation_is_frozen_and_takes_images_and_a_generator(name):
    augmentation = components.load("augmentations", name)
    assert augmentation.__dataclass_params__.frozen
    call = inspect.signature(augmentation.__call__).parameters
    assert list(call) == ["self", "images", "generator"]
    assert call["generator"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", components.choices("metrics"))
def test_a_metric_declares_its_inputs_and_which_direction_is_better(name):
    metric = components.load("metrics", name)
    assert metric.values and set(metric.values.values()) <= {"lower", "higher"}
    assert isinstance(metric.takes_statistics, bool) and hasattr(metric, "least_images")
    call = inspect.signature(metric.__call__).parameters
    assert set(metric.inputs) == set(call) - {"self"}
    if len(metric.inputs) > 1:
        assert all(call[array].kind is inspect.Parameter.KEYWORD_ONLY for array in metric.inputs)


@pytest.mark.parametrize("name", components.choices("objectives"))
def test_an_objective_is_frozen_and_says_whom_it_needs(name):
    objective = components.load("objectives", name)
    assert objective.__dataclass_params__.frozen
    assert callable(objective.networks)
    assert callable(objective.phases)


@pytest.mark.parametrize("name", components.choices("data"))
def test_a_dataset_has_a_length_and_items(name):
    dataset = components.load("data", name)
    assert callable(dataset.__len__) and callable(dataset.__getitem__)


@pytest.mark.parametrize("name", components.choices("sampling"))
def test_a_sampler_turns_noise_into_images(name):
    call = list(inspect.signature(components.load("sampling", name).__call__).parameters)
    assert call[:4] == ["self", "generator", "noise", "condition"]
