"""Instance losses: recordings of the reference, what they must not depend on, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from onestep import components
from onestep.objectives import Batch
from onestep.objectives._moves import Grid, Levels, Moves, drawn_levels
from onestep.objectives.instance import Instance
from onestep.training.streams import CountedRows
from recorded_studies import assert_close, constants, denoiser, studies_of, tensors, tolerance

_FILE = "d2o_instance.npz"
_LOSS, _GRADIENTS = r"loss rel ([\d.e-]+\d)", r"grads rel ([\d.e-]+\d)"
_RESIZED = 224  # pixels, of loss_l2_224
_KINDS = ("cd", "ctm", "pd", "rcd")
D2O = {"name": "d2o", "loss": "non_saturating", "sigma": 80.0, "rows_per_rank": 4.0, "r1_gamma": 0.1, "r1_every": 16}


class Replayed:
    """Random streams that repeat the draws of the reference, which begin with one of whole numbers unless for rcd."""

    def __init__(self, shape, *, seed, whole):
        """`whole` are the lowest number of that draw and the first one above its highest; None without it."""
        torch.manual_seed(seed)
        self.noise, self.whole = torch.randn(shape), whole

    def normal(self, *shape):
        assert self.noise.shape[1:] == shape
        return self.noise

    def uniform(self, *shape):
        assert shape == ()
        if self.whole is None:
            return torch.rand(len(self.noise))
        (lowest, above), self.whole = self.whole, None
        drawn = torch.randint(lowest, above, (len(self.noise),))
        return (drawn - lowest + 0.5) / (above - lowest)


def _replayed(kind, steps, own, shape):
    levels = {"cd": (2, steps + 1), "ctm": (2, steps + 1), "pd": (0, math.floor(math.log2(steps)))}
    return Replayed(shape, seed=own["draw"], whole=levels.get(kind))


@pytest.fixture(scope="module")
def recorded(golden):
    return studies_of(golden)


@pytest.fixture(scope="module")
def arrays(recorded):
    return recorded.load(_FILE)


@pytest.fixture(params=["one_time", "two_times"])
def game(request, arrays, recorded):
    """Student and teacher of a mode, as the moves call them, and the student's parameters."""
    times, resolution = 1 + (request.param == "two_times"), constants(recorded, _FILE)["R"]
    network = denoiser(arrays, "student", law="d2o", times=times, resolution=resolution)
    teacher = denoiser(arrays, "teacher", law="edm", resolution=resolution)

    def student(noisy, sigma, following, _):
        return network(noisy, sigma, (following.log() / 4)[:, None] if times == 2 else None)

    return request.param, student, lambda noisy, sigma, _: teacher(noisy, sigma), network


def assert_gradients(network, case, *, share, what):
    """Compare the gradients of the student's tensors with the recorded ones; those that it does not use are 0."""
    for name, parameter in network.model.named_parameters():
        wanted = case[f"grad/{name}"]
        found = torch.zeros_like(wanted) if parameter.grad is None else parameter.grad
        if wanted.any():
            assert_close(found, wanted, share=share, what=f"{what} {name}")
        else:
            assert not found.any()


def _cases(recorded):
    return [(kind, steps) for kind in _KINDS for steps in constants(recorded, _FILE)["N"]]


@pytest.mark.golden
def test_levels_targets_losses_and_gradients_equal_the_recordings(game, recorded, arrays):
    mode, student, teacher, network = game
    images, close = torch.from_numpy(arrays["x"]), tolerance(recorded, _FILE, r"cd, ctm: abs ([\d.e-]+\d)")
    loose, loss_share = (tolerance(recorded, _FILE, each) for each in (r"pd, rcd: abs ([\d.e-]+\d)", _LOSS))
    distance = components.build("distances", {"name": "l2", "resolution": _RESIZED})
    for kind, steps in _cases(recorded):
        case = tensors(arrays, f"{mode}/{kind}/N{steps}/")
        random = _replayed(kind, steps, constants(recorded, _FILE), images.shape)
        torch.testing.assert_close(random.normal(*images.shape[1:]), case["z"], rtol=0, atol=0)
        grid, levels = Grid(steps=steps), drawn_levels(kind, steps=steps, random=random)
        for level, index in zip("tus", levels, strict=True):
            assert torch.equal(index, case[f"{level}_index"].double()), f"{kind} {steps} {level}"
            torch.testing.assert_close(
                grid.sigma(index).float(),
                case[f"sigma_{level}"],
                rtol=tolerance(recorded, _FILE, r"sigmas rel ([\d.e-]+\d)"),
                atol=0,
            )
        sigma = grid.sigma(levels.t).float()
        noisy = images + sigma[:, None, None, None] * case["z"]
        with torch.no_grad():
            target = Moves(grid=grid, student=student, teacher=teacher).target(kind, noisy, levels)
        share = close / float(case["target"].abs().max()) if kind in ("cd", "ctm") else loose
        what = f"{mode} {kind} {steps}"
        assert_close(target, case["target"], share=share, what=what)
        # A network of two times predicts from level t for level s.
        generated = student(noisy, sigma, grid.sigma(levels.s).float(), None)
        assert_close(generated, case["pred"], share=close / float(case["pred"].abs().max()), what=what)
        loss = distance(generated, target.float(), networks={}).mean()
        torch.testing.assert_close(loss, case["loss_l2_224"], rtol=loss_share, atol=0)
        network.zero_grad()
        loss.backward()
        assert_gradients(network, case, share=tolerance(recorded, _FILE, _GRADIENTS), what=what)


@pytest.mark.golden
def test_the_loss_and_its_gradients_equal_the_recordings(recorded, arrays):
    images, resolution = torch.from_numpy(arrays["x"]), constants(recorded, _FILE)["R"]
    loss_share = tolerance(recorded, _FILE, _LOSS)
    for kind, steps in _cases(recorded):
        if kind == "pd" and steps & (steps - 1):
            continue  # refused
        case = tensors(arrays, f"one_time/{kind}/N{steps}/")
        for size, key in ((_RESIZED, "loss_l2_224"), (None, "loss_l2_native")):
            network = denoiser(arrays, "student", law="d2o", resolution=resolution)
            networks = {"generator": network, "teacher": denoiser(arrays, "teacher", law="edm", resolution=resolution)}
            objective = Instance(kind=kind, steps=steps, distance={"name": "l2", "resolution": size}, weight=3.0)
            random = _replayed(kind, steps, constants(recorded, _FILE), images.shape)
            (phase,) = objective.phases()
            loss = phase.loss(networks, Batch(images=images, condition=None, random=random, images_seen=0))
            torch.testing.assert_close(loss.observed["instance"], case[key], rtol=loss_share, atol=0)
            torch.testing.assert_close(loss.value, 3.0 * loss.observed["instance"])
            if size is not None:
                (loss.value / 3.0).backward()
                share = tolerance(recorded, _FILE, _GRADIENTS)
                assert_gradients(network, case, share=share, what=f"{kind} {steps}")


def _rows(count=4000, phase="any"):
    return CountedRows(seed=0, phase=phase, rows=range(count), device=torch.device("cpu"))


@pytest.mark.parametrize("steps", [2, 8, 18])
def test_levels_cover_their_ranges(steps):
    for kind in ("cd", "ctm", "rcd", *(("pd",) if steps != 18 else ())):
        t, u, s = drawn_levels(kind, steps=steps, random=_rows())
        assert t.dtype == torch.float64 and bool(((s >= 0) & (s < u) & (u < t) & (t <= steps)).all()), kind
        found = {name: set(level.tolist()) for name, level in zip("tus", (t, u, s), strict=True)}
        if kind == "cd":
            assert found["t"] == set(range(2, steps + 1)) and found["s"] == {0} and bool((t - u == 1).all())
        elif kind == "ctm":
            assert (found["t"], found["s"]) == (set(range(2, steps + 1)), set(range(steps - 1)))
        elif kind == "rcd":
            assert found["t"] == {steps} and found["s"] == set(range(steps - 1)) and bool((u - s == 1).all())
        else:
            # Intervals of a half, a quarter, ... of the grid, each with its middle; the teacher takes the finest alone.
            assert bool((2 * u == t + s).all()) and bool((t % (t - s) == 0).all())
            widths = (t - s).unique().tolist()
            assert widths == [2.0**power for power in range(1, steps.bit_length())]
            shares = [float((t - s == width).double().mean()) for width in widths]
            assert shares == pytest.approx([1 / len(widths)] * len(widths), abs=0.03)


def test_each_network_gets_only_the_images_that_need_it():
    seen = {"student": [], "teacher": []}

    def watching(name):
        def denoise(noisy, sigma, *others):
            seen[name].append(len(noisy))
            return 0.5 * noisy

        return denoise

    levels = Levels(*(torch.tensor(each, dtype=torch.float64) for each in ([5, 5, 4], [4, 4, 3], [3, 0, 0])))
    noisy = torch.randn(3, 1, 4, 4)
    moves = Moves(grid=Grid(steps=8), student=watching("student"), teacher=watching("teacher"))
    target = moves.target("ctm", noisy, levels)
    # The first moves of all by the teacher, whose step has two evaluations; of the second moves one by the teacher and
    # two by the student; of the last moves, to level 0, the one that is not there yet.
    assert seen == {"teacher": [3, 3, 1, 1], "student": [2, 1]}
    for row in range(3):
        alone = moves.target("ctm", noisy[row : row + 1], Levels(*(level[row : row + 1] for level in levels)))
        torch.testing.assert_close(alone[0], target[row])


def test_heuns_step_solves_the_flow_of_normal_images_and_the_conditions_follow_their_images():
    """Of independent normal pixels of deviation 0.5 the flow is x proportional to sqrt(sigma^2 + 0.25)."""
    grid, given = Grid(steps=200), []

    def teacher(noisy, sigma, condition):
        given.append(condition)
        return noisy * (0.25 / (0.25 + sigma.double() ** 2))[:, None, None, None]

    condition = torch.eye(3)
    start = torch.tensor([150.0, 100.0, 40.0])
    moves = Moves(grid=grid, student=None, teacher=teacher, condition=condition)
    noisy = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    moved = moves.move(noisy, start, start - 1)
    scale = ((grid.sigma(start - 1) ** 2 + 0.25) / (grid.sigma(start) ** 2 + 0.25)).sqrt()
    torch.testing.assert_close(moved, scale[:, None, None, None] * noisy, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(each, condition) for each in given)


def test_targets_of_small_intervals_keep_their_digits():
    """The target of pd at N = 1024 against the same in float64 networks: float32 arithmetic is off by 1e-3 here."""
    torch.manual_seed(0)
    steps, noisy = 1024, torch.randn(4, 1, 4, 4)
    end = torch.tensor([2.0, 4.0, 20.0, 1024.0], dtype=torch.float64)
    levels = Levels(end, end - 1, end - 2)

    def denoise(noisy, sigma, *others):
        wide = noisy.double()
        return (wide * (0.25 / (0.25 + sigma.double() ** 2))[:, None, None, None] + 0.1 * wide.tanh()).to(noisy.dtype)

    def rounded(noisy, sigma, *others):
        return denoise(noisy, sigma).float()

    exact = Moves(grid=Grid(steps=steps), student=denoise, teacher=denoise).target("pd", noisy, levels)
    found = Moves(grid=Grid(steps=steps), student=rounded, teacher=rounded).target("pd", noisy, levels)
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


class Half(nn.Module):
    """A denoiser of one number."""

    def __init__(self, weight=0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, noisy, sigma, condition):
        return self.weight * noisy


class Critic(nn.Module):
    """A discriminator that adds up pixels."""

    splits = (1,)

    def forward(self, images, condition):
        return self.heads(self.frozen_features(images), condition)

    def frozen_features(self, images):
        return ((images,),)

    def heads(self, features, condition):
        return features[0][0].flatten(1).sum(dim=1, keepdim=True) / 100


def _batch(rows=range(6), phase="generator"):
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2))[rows.start : rows.stop] - 0.5
    random = CountedRows(seed=1, phase=phase, rows=rows, device=torch.device("cpu"))
    return Batch(images=images, condition=None, random=random, images_seen=0)


def _networks():
    return {"generator": Half(), "teacher": Half(0.3), "target": Half(0.9), "discriminator": Critic()}


@pytest.mark.parametrize("kind", _KINDS)
def test_two_halves_of_a_batch_average_to_the_whole(kind):
    objective = Instance(kind=kind, steps=16, distance={"name": "pseudo_huber"}, weighting="karras")
    whole, *halves = (objective.instance_loss(_networks(), _batch(rows)) for rows in (range(6), range(3), range(3, 6)))
    torch.testing.assert_close(sum(each.value for each in halves) / 2, whole.value)


def test_gradients_reach_the_generator_through_its_prediction_alone():
    networks = _networks()
    Instance(kind="ctm", steps=16, distance={"name": "l2"}).instance_loss(networks, _batch()).value.backward()
    assert networks["generator"].weight.grad is not None
    assert all(networks[role].weight.grad is None for role in ("teacher", "target"))


def test_the_target_is_made_by_the_generator_or_by_its_average():
    own = {"kind": "cd", "steps": 16, "distance": {"name": "l2"}}
    student = Instance(**own)
    average = Instance(**own, target="ema", target_half_life=100.0)
    assert list(student.networks()) == ["generator", "teacher"]
    assert (average.networks()["target"].role, average.networks()["target"].half_life) == ("generator", 100.0)
    networks = _networks()
    losses = [each.instance_loss(networks, _batch()).value for each in (student, average)]
    assert losses[0] != losses[1]
    networks["target"] = networks["generator"]
    torch.testing.assert_close(average.instance_loss(networks, _batch()).value, losses[0])


def test_beside_a_gan_loss_the_generator_step_has_both_and_the_rest_stays():
    alone = Instance(kind="cd", steps=16, distance={"name": "l2"}, weight=2.0)
    both = Instance(kind="cd", steps=16, distance={"name": "l2"}, weight=2.0, beside=D2O)
    assert list(both.networks()) == ["generator", "discriminator", "teacher"]
    first, *rest = both.phases()
    assert [(each.name, each.trains, each.every, each.lazy_regularizer) for each in (first, *rest)] == [
        ("generator", "generator", 1, False),
        ("discriminator", "discriminator", 1, False),
        ("r1", "discriminator", 16, True),
    ]
    networks, batch = _networks(), _batch()
    loss = first.loss(networks, batch)
    # The GAN loss draws first, as it does alone; the instance loss from the same streams after it.
    from onestep.objectives.d2o import D2O as Gan

    gan = Gan(**{key: value for key, value in D2O.items() if key != "name"}).generator_loss(networks, _batch()).value
    torch.testing.assert_close(loss.observed["beside"], gan)
    later = _batch()
    later.random.normal(1, 4, 4)
    torch.testing.assert_close(loss.value, gan + alone.instance_loss(networks, later).value)


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"kind": "pd", "steps": 18}, "power of two"),
        ({"target": "ema"}, "half-life"),
        ({"target_half_life": 10.0}, "target: student"),
        ({"distance": {"name": "l3"}}, "'l3'"),
        ({"distance": {"name": "l2", "resolutoin": 3}}, "resolutoin"),
        ({"beside": {"name": "cross_entropy"}}, "generator"),
        ({"beside": {**D2O, "sigma": 40.0}}, "sigma"),
        ({"beside": {"name": "instance", "kind": "cd", "distance": {"name": "l2"}}}, "teacher"),
    ],
)
def test_wrong_options_are_refused_in_one_line(wrong, part):
    with pytest.raises(ValueError, match=part) as error:
        Instance(**{"kind": "cd", "steps": 16, "distance": {"name": "l2"}, **wrong})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", _KINDS)
def test_its_memory_is_known_without_values(kind):
    meta = torch.device("meta")
    networks = {role: each.to(meta) for role, each in _networks().items()}
    random = CountedRows(seed=1, phase="generator", rows=range(6), device=meta)
    images = torch.zeros(6, 1, 4, 4, device=meta)
    batch = Batch(images=images, condition=torch.zeros(6, 2, device=meta), random=random, images_seen=0)
    loss = Instance(kind=kind, steps=16, distance={"name": "l2"}).instance_loss(networks, batch)
    loss.value.backward()
    assert loss.value.is_meta and networks["generator"].weight.grad is not None
