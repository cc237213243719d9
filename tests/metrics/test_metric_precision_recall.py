"""Precision and recall: recorded numbers, the two directions, memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from onestep.metrics._features import squared_distances, squared_radii
from onestep.metrics.precision_recall import PrecisionRecall


@pytest.fixture
def recorded(golden):
    return golden.load("precision_recall.npz")


def _sets(recorded: dict[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    return {"generated": recorded[f"{case}/feats_sample"], "real": recorded[f"{case}/feats_ref"]}


def _clouds(generated: int, real: int, *, width: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.RandomState(seed)
    shapes = {"generated": (generated, width), "real": (real, width)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.golden
def test_shares_are_those_of_exact_arithmetic_and_near_the_references_half_precision(golden, recorded):
    for case in golden.cases(recorded):
        for column, neighbours in enumerate(recorded[f"{case}/k"]):
            found = PrecisionRecall(neighbours=int(neighbours))(**_sets(recorded, case))
            for name, share in found.items():
                assert share == recorded[f"{case}/{name}_float64_variant"][column]
                others = [key for key in recorded if key.startswith(f"{case}/{name}") and "float64" not in key]
                assert others, "the runs under TensorFlow and in float32"
                for key in others:
                    assert share == pytest.approx(recorded[key][column], abs=0.01), key


@pytest.mark.golden
def test_radii_and_distances_are_the_references_up_to_half_precision(golden, recorded):
    for case in golden.cases(recorded):
        sets = {name: torch.from_numpy(features).double() for name, features in _sets(recorded, case).items()}
        rounding = 4 * 2**-11 * max(float(features.square().sum(1).max()) for features in sets.values())
        for name, features in (("radii_ref", sets["real"]), ("radii_sample", sets["generated"])):
            for column, neighbours in enumerate(recorded[f"{case}/k"]):
                found = squared_radii(features, neighbours=int(neighbours), memory_mib=1024)
                np.testing.assert_allclose(found, recorded[f"{case}/{name}"][:, column], atol=rounding)
        block = recorded[f"{case}/pairwise_sqdist_block"]
        ((_, squared),) = squared_distances(
            sets["real"][: block.shape[0]], sets["generated"][: block.shape[1]], memory_mib=1024
        )
        np.testing.assert_allclose(squared, block, atol=rounding)


@pytest.mark.golden
def test_half_precision_comes_nearer_to_the_reference(golden, recorded):
    gaps = {"float16": 0.0, "float64": 0.0}
    for case in golden.cases(recorded):
        for column, neighbours in enumerate(recorded[f"{case}/k"]):
            for arithmetic in gaps:
                found = PrecisionRecall(neighbours=int(neighbours), arithmetic=arithmetic)(**_sets(recorded, case))
                gap = max(abs(found[name] - recorded[f"{case}/{name}"][column]) for name in found)
                gaps[arithmetic] = max(gaps[arithmetic], gap)
    assert gaps["float16"] < 0.005 < gaps["float64"] <= 0.01


def test_features_too_large_for_half_precision_take_single_precision():
    sets = {name: 1e3 * rows for name, rows in _clouds(150, 220).items()}
    found = PrecisionRecall(arithmetic="float16")(**sets)
    assert found == pytest.approx(PrecisionRecall()(**sets), abs=0.01)
    assert PrecisionRecall(arithmetic="float16", memory_mib=1)(**sets) == found


def test_one_real_image_repeated_is_precise_and_covers_nothing():
    real = _clouds(1, 300)["real"]
    repeated = np.repeat(real[7:8], 200, axis=0)
    found = PrecisionRecall(neighbours=3)(generated=repeated, real=real)
    assert found == {"precision": 1.0, "recall": 1 / 300}
    assert PrecisionRecall(neighbours=3)(generated=real, real=repeated) == {"precision": 1 / 300, "recall": 1.0}


def test_exchanging_the_sets_exchanges_the_numbers():
    sets = _clouds(150, 220)
    sets["generated"] *= 1.3
    there = PrecisionRecall(neighbours=2)(**sets)
    back = PrecisionRecall(neighbours=2)(generated=sets["real"], real=sets["generated"])
    assert there["precision"] != there["recall"]
    assert (there["precision"], there["recall"]) == (back["recall"], back["precision"])


def test_the_sets_cannot_be_given_by_position():
    with pytest.raises(TypeError):
        PrecisionRecall(neighbours=2)(*_clouds(5, 5).values())


def test_a_set_covers_itself_and_nothing_far_away():
    real = _clouds(1, 80)["real"]
    assert PrecisionRecall(neighbours=1)(generated=real, real=real) == {"precision": 1.0, "recall": 1.0}
    assert PrecisionRecall(neighbours=1)(generated=real + 100, real=real) == {"precision": 0.0, "recall": 0.0}


def test_a_hand_made_case():
    real = np.array([[0.0], [1.0], [3.0], [10.0]])  # radii to the nearest: 1, 1, 2, 7
    generated = np.array([[-1.0], [-1.5], [2.5], [17.0], [17.5]])  # radii: 0.5, 0.5, 3.5, 0.5, 0.5
    found = PrecisionRecall(neighbours=1)(generated=generated, real=real)
    assert found == {"precision": 3 / 5, "recall": 3 / 4}  # a ball holds its boundary: -1, 2.5, 17; 0, 1, 3


def test_memory_changes_no_result():
    sets = _clouds(900, 1500, width=16)
    for arithmetic in ("float64", "float16"):
        few, many = (PrecisionRecall(memory_mib=size, arithmetic=arithmetic)(**sets) for size in (1, 4096))
        assert few == many


def test_copies_are_at_distance_zero_also_far_from_the_origin():
    real = _clouds(1, 60, width=300)["real"] + 1e3
    doubled = np.concatenate([real, real])
    found = PrecisionRecall(neighbours=1)(generated=doubled, real=real)
    assert found == {"precision": 1.0, "recall": 1.0}
    assert (squared_radii(torch.from_numpy(doubled).double(), neighbours=1, memory_mib=1024) == 0).all()


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"neighbours": 5}, {"generated": np.zeros((5, 8))}, "generated features: .* 5 images.* 6"),
        ({}, {"real": np.zeros((9, 7))}, "features: .*8.*7"),
        ({}, {"real": np.full((9, 8), np.nan)}, "real features: 9 of 9 images"),
        ({"neighbours": 0}, {}, "neighbours and memory_mib: got 0"),
    ],
)
def test_what_has_no_manifold_is_refused(options, change, message):
    with pytest.raises(ValueError, match=message):
        PrecisionRecall(**options)(**_clouds(9, 9) | change)


def _peak_mib(images: int, *, width: int, memory_mib: int) -> float:
    """Return the peak of a process of its own, beside the features it was given."""
    script = Path(__file__).with_name("peak_memory.py")
    command = [sys.executable, script, *map(str, (images, width, memory_mib))]
    peak, precision = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert 0 < float(precision) < 1
    return float(peak)


@pytest.mark.parametrize(
    ("images", "width", "memory_mib"),
    [
        (12_000, 16, 64),  # the table would be 1,100 MiB
        (4_000, 1024, 32),
        pytest.param(50_000, 16, 256, marks=pytest.mark.full_size),  # and here 19,000 MiB
    ],
)
def test_memory_is_that_of_a_chunk_beside_the_features_in_double_and_single_precision(images, width, memory_mib):
    in_single_precision = 2 * images * width * 4 / 2**20
    libraries = 32  # what BLAS and the allocator hold for themselves
    assert _peak_mib(images, width=width, memory_mib=memory_mib) < memory_mib + 4 * in_single_precision + libraries
