"""What methods compute until the distance of a GAN: each verdict, costs beside measured ones, the figure."""

from __future__ import annotations

import pytest
from arms_files import IMAGES, OPTIONS, log
from test_studies_of_methods import around, drawn, written

from onestep.files import write_json
from onestep.studies.less_compute import LessCompute

_GFLOP = 1e9


def costed(folder, curves, *, gflop, seconds, start=None):
    """Return the study of arms with their operations and seconds per 1,000 images, and its files."""
    arms, files = written(folder, curves)
    for label, runs in arms.items():
        for run in runs:
            took = seconds[label] * IMAGES[-1] / 1_000
            write_json(files[f"summary.{run}"][0], {"run": run, "seconds": took, "images_seen": IMAGES[-1]})
            phase = {"every": 1, "flops_per_image": gflop[label] * _GFLOP, "passes": {}, "units": {}}
            record = {
                **{"run": run, "batch": 64, "processes": 1, "flops_per_image": gflop[label] * _GFLOP},
                "flops_before_the_first_step": (start or {}).get(label, 0.0) * _GFLOP,
                **{"passes_per_image": {"denoiser": 2 * gflop[label]}, "phases": {"generator": phase}},
            }
            files[f"work.{run}"] = [folder / f"{run}.work.json"]
            write_json(files[f"work.{run}"][0], record)
            peaks = [{"images_seen": n, "losses": {}, "memory_mib": n / 10} for n in IMAGES]
            files[f"log.{run}"] = log(folder, run, peaks)
    others = tuple(label for label in arms if label != "D2O")
    return LessCompute(arms=arms, gan="D2O", without=others, **OPTIONS), files


@pytest.mark.parametrize(
    ("verdict", "frechet", "gflop"),
    [
        ("confirmed", around(0.5), 1.0),  # there after half of the images
        ("not confirmed", around(0.5), 2.0),  # for twice as much each
        ("contradicted", around(0.5), 8.0),
        ("contradicted", around(2), 0.1),  # never there
    ],
)
def test_a_method_needs_less_or_more(tmp_path, verdict, frechet, gflop):
    curves = {"D2O": around(1), "FD": frechet, "MMD": around(3)}
    cost, seconds = {"D2O": 1.0, "FD": gflop, "MMD": 1.0}, {"D2O": 2.0, "FD": 3.0, "MMD": 2.0}
    study, files = costed(tmp_path, curves, gflop=cost, seconds=seconds)
    assert set(study.observes()) == set(files)
    found = study.conclude(files)
    assert found.verdict == verdict
    assert found.numbers["FD.relative cost"] == pytest.approx(gflop)
    assert found.control["FD.relative cost"] == pytest.approx(1.5)
    assert found.numbers["FD.peak_mib"] == IMAGES[-1] / 10
    assert ("FD.GFLOP until" in found.numbers) == (found.numbers["FD.reached"] == 3)
    assert found.numbers["MMD.reached"] == 0 and found.numbers["D2O.reached"] == 3
    assert len(drawn(found).axes) == 2


def test_operations_before_the_first_step_count_and_ranks_are_compared(tmp_path):
    curves = {"D2O": around(1), "FD": around(1), "MMD": around(0.9)}
    cost, seconds = {"D2O": 1.0, "FD": 2.0, "MMD": 4.0}, {"D2O": 1.0, "FD": 3.0, "MMD": 2.0}
    study, files = costed(tmp_path, curves, gflop=cost, seconds=seconds, start={"FD": 500.0})
    found = study.conclude(files)
    assert found.arrays["FD.gflop"][0].tolist() == [500 + 2 * n for n in IMAGES]
    assert found.numbers["rank correlation of GFLOP and seconds"] == pytest.approx(0.5)
    assert found.numbers["rank correlation of denoiser passes and seconds"] == pytest.approx(0.5)
    assert found.numbers["FD.denoiser passes"] == 4.0
    assert found.numbers["MMD.relative cost until"] > 1


def test_two_training_seeds_decide_nothing_and_the_gan_is_no_other(tmp_path):
    curves = {"D2O": around(1), "FD": around(0.5)}
    study, files = costed(tmp_path, curves, gflop={"D2O": 1.0, "FD": 1.0}, seconds={"D2O": 1.0, "FD": 1.0})
    few = {label: runs[:2] for label, runs in study.arms.items()}
    found = LessCompute(arms=few, gan="D2O", without=("FD",), **OPTIONS)
    assert found.conclude(files).verdict == "undecided"
    with pytest.raises(ValueError, match="the label of the GAN"):
        LessCompute(arms=few, gan="D2O", without=("D2O",), **OPTIONS)


def test_the_work_of_another_run_is_refused(tmp_path):
    curves = {"D2O": around(1), "FD": around(1)}
    study, files = costed(tmp_path, curves, gflop={"D2O": 1.0, "FD": 1.0}, seconds={"D2O": 1.0, "FD": 1.0})
    one, other = study.arms["FD"][:2]
    with pytest.raises(ValueError, match=f"got the work of run {other}, expected {one}"):
        study.conclude({**files, f"work.{one}": files[f"work.{other}"]})
