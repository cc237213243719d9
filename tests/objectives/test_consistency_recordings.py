"""The moves, weightings and distances of instance losses against the original consistency models and trajectories."""

from __future__ import annotations

import pytest
import torch

from onestep import components
from onestep.objectives._moves import Grid, Levels, Moves
from onestep.objectives.instance import Instance
from recorded_studies import assert_close, constants, denoiser, studies_of, tensors, tolerance

pytestmark = pytest.mark.golden

_CM, _CTM = "consistency_models.npz", "ctm.npz"
_WEIGHTINGS = {"snr+1": "snr_plus_one", "truncated-snr": "truncated_snr"}  # the names that differ


@pytest.fixture(scope="module")
def recorded(golden):
    return studies_of(golden)


def _column(values):
    return values[:, None, None, None]


def _moves(grid, network, teacher):
    """Return the moves of a student of two times."""

    def student(noisy, sigma, following, _):
        return network(noisy, sigma, (following.log() / 4)[:, None])

    return Moves(grid=grid, student=student, teacher=lambda noisy, sigma, _: teacher(noisy, sigma))


def test_losses_of_consistency_models_equal_the_recordings(recorded):
    arrays, own = recorded.load(_CM), constants(recorded, _CM)
    share = tolerance(recorded, _CM, r"loss rel ([\d.e-]+\d)")
    gradient_share = tolerance(recorded, _CM, r"grads rel ([\d.e-]+\d)")
    images, noise = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["noise"])
    law = {"student": "d2o", "target": "d2o", "teacher": "edm"}
    cases = sorted({key.rsplit("/", 1)[0] for key in arrays if key.endswith("/index")})
    assert {each.split("/")[0] for each in cases} == {"cd", "ct", "pd"}
    for name in cases:
        kind, scale, distance_name, weighting = name.split("/")
        networks = {role: denoiser(arrays, role, law=each, resolution=own["R"]) for role, each in law.items()}
        case, scale = tensors(arrays, f"{name}/"), int(scale.removeprefix("N"))
        # Their index counts down from 80, on a grid of one step less but for pd.
        steps = scale if kind == "pd" else scale - 1
        grid, start = Grid(steps=steps), (steps - case["index"]).double()
        sigma = grid.sigma(start).float()
        noisy = images + _column(sigma) * noise
        with torch.no_grad():
            student = networks["teacher" if kind == "pd" else "student"]
            moves = Moves(
                grid=grid,
                student=lambda noisy, level, following, condition, by=student: by(noisy, level),
                teacher=lambda noisy, level, condition, by=networks["teacher"]: by(noisy, level),
            )
            if kind == "pd":
                target = moves.target("pd", noisy, Levels(start, start - 0.5, start - 1))
            else:
                below = grid.sigma(start - 1).float()
                nearer = images + _column(below) * noise if kind == "ct" else moves.move(noisy, start, start - 1)
                target = networks["target"](nearer, below)
        objective = Instance(
            kind="cd", distance={"name": distance_name}, weighting=_WEIGHTINGS.get(weighting, weighting)
        )
        distance = components.build("distances", {"name": distance_name})
        network = networks["student"]
        found = objective.weight_at(sigma) * distance(network(noisy, sigma), target.float(), networks={})
        torch.testing.assert_close(found, case["loss"], rtol=share, atol=1e-7)
        found.mean().backward()
        for key in (key for key in case if key.startswith("grad/")):
            gradient = getattr(network.model, key.removeprefix("grad/")).grad
            assert_close(gradient, case[key], share=gradient_share, what=f"{name} {key}")


def test_weightings_equal_the_recordings(recorded):
    arrays = recorded.load(_CM)
    share = tolerance(recorded, _CM, r"tables rel ([\d.e-]+\d)")
    recordings = tensors(arrays, "weighting/")
    assert len(recordings) == 5
    for name, wanted in recordings.items():
        objective = Instance(kind="cd", distance={"name": "l2"}, weighting=_WEIGHTINGS.get(name, name))
        found = objective.weight_at(torch.from_numpy(arrays["sigma_table"]))
        torch.testing.assert_close(found, wanted, rtol=share, atol=0)


@pytest.mark.parametrize(("inner", "law"), [("edm", "edm"), ("cm", "d2o")])
def test_trajectories_equal_the_recordings(recorded, inner, law):
    """The student's Euler step with a network of two times is their G; h teacher steps lead to their target."""
    arrays, own = recorded.load(_CTM), constants(recorded, _CTM)
    close = tolerance(recorded, _CTM, r"abs ([\d.e-]+\d) images")
    images, noise = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["noise"])
    teacher = denoiser(arrays, "teacher", law="edm", resolution=own["R"])
    distance = components.build("distances", {"name": "l2", "resolution": 224})
    for scale in own["scales"]:
        grid = Grid(steps=scale - 1)

        networks = {
            role: denoiser(arrays, role, law=law, times=2, resolution=own["R"]) for role in ("student", "target")
        }
        prefix = f"N{scale}/euler/{inner}"
        for heun in own["heun"]:
            case = tensors(arrays, f"{prefix}/h{heun}/")
            start, end = (scale - 1 - case[f"{level}_index"].double() for level in "ts")
            noisy = images + _column(grid.sigma(start).float()) * noise
            lowest = grid.sigma(torch.zeros_like(start))
            student, fixed = (_moves(grid, networks[role], teacher) for role in ("student", "target"))
            estimate = student.euler(noisy, grid.sigma(start).float(), grid.sigma(end).float(), None)
            estimate = fixed.euler(estimate, grid.sigma(end).float(), lowest.float(), None)
            assert_close(estimate, case["estimate"], share=close, what=f"{prefix} {heun} estimate")
            with torch.no_grad():
                nearer = noisy.double()
                for step in range(heun):
                    nearer = student.move(nearer, start - step, start - step - 1)
                target = student.euler(nearer, grid.sigma(start - heun), grid.sigma(end), None)
                target = fixed.euler(target, grid.sigma(end), lowest, None)
            assert_close(target, case["target"], share=close, what=f"{prefix} {heun} target")
            # They compare images in [0, 1].
            found = distance((estimate + 1) / 2, (target.float() + 1) / 2, networks={})
            torch.testing.assert_close(
                found, case["loss"], rtol=tolerance(recorded, _CTM, r"loss rel ([\d.e-]+\d)"), atol=1e-7
            )
            networks["student"].zero_grad()
            found.mean().backward()
            for key in (key for key in case if key.startswith("grad/")):
                gradient = getattr(networks["student"].model, key.removeprefix("grad/")).grad
                share = tolerance(recorded, _CTM, r"grads rel ([\d.e-]+\d)")
                assert_close(gradient, case[key], share=share, what=f"{prefix} {heun} {key}")
