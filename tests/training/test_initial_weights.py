"""What a generator starts from by `init` of its run, and the snapshot at 0 images that shows it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from onestep.checkpoints.snapshot import read_snapshot, write_snapshot
from onestep.config.run import run_of
from onestep.distributed import Ranks
from onestep.networks import build_denoiser
from onestep.training.run import assemble

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
FIRST = ("model.enc.16x16_conv.*", "model.map_layer*")


def started(bench, run="digits_d2o", *, file=None, **changes):
    """Return the training of a tiny run with some keys changed, as it starts."""
    document = yaml.safe_load(bench.document(run, **changes).read_text())
    files = dataclasses.replace(bench.files(document), init=file)
    return assemble(run_of(document), files=files, ranks=ALONE)


def generator(bench, run="digits_d2o", **options):
    return dict(started(bench, run, **options).networks["generator"].state_dict())


def differing(one, other):
    assert one.keys() == other.keys()
    return {name for name, tensor in one.items() if not torch.equal(tensor, other[name])}


@pytest.fixture(scope="module")
def teacher(bench):
    return read_snapshot(bench.folder / "teacher.safetensors")


@pytest.fixture(scope="module")
def plain(bench):
    return generator(bench)


def test_without_it_and_from_the_teacher_the_weights_are_the_teachers(bench, teacher, plain):
    assert not differing(plain, teacher.state_dict)
    assert not differing(plain, generator(bench, init={"from": "teacher"}))


def test_fresh_weights_follow_from_the_seed_and_the_teacher_stays_for_other_roles(bench, teacher, plain):
    distance = {"name": "l2"}
    objective = {"name": "instance", "kind": "cd", "steps": 4, "distance": distance}
    adam = {"generator": {"name": "adam", "lr": 1e-4}}
    options = {"init": {"from": "none"}, "objective": objective, "optimizers": adam, "discriminator": None}
    training = started(bench, **options)
    found = dict(training.networks["generator"].state_dict())
    assert "model.map_layer0.weight" in differing(found, plain)
    assert not differing(dict(training.networks["teacher"].state_dict()), teacher.state_dict)
    assert not differing(found, generator(bench, **options))
    assert differing(found, generator(bench, **options, seed=5))
    torch.manual_seed(0)
    assert not differing(found, dict(build_denoiser(training.configs[training.published]).state_dict()))
    average = training.averages[""].published()
    assert not differing(found, average)


def test_redrawn_tensors_are_fresh_and_all_others_those_of_the_teacher(bench, plain):
    found, fresh = (generator(bench, init=init) for init in ({"redraw": list(FIRST)}, {"from": "none"}))
    moved = differing(found, plain)
    # Fresh biases of the first layers are zero, as in no trained network.
    assert moved == {name for name in plain if name.startswith(("model.enc.16x16_conv.", "model.map_layer"))}
    assert all(torch.equal(found[name], fresh[name]) for name in moved)


def test_shuffled_tensors_have_the_same_entries_in_another_order(bench, plain):
    found = generator(bench, init={"shuffle": True})
    assert not differing(found, generator(bench, init={"shuffle": True}))
    assert differing(found, generator(bench, init={"shuffle": True}, seed=3))
    both = generator(bench, init={"shuffle": True, "redraw": list(FIRST)})
    assert {name.split(".")[-1] for name in differing(found, plain)} == {"weight", "bias"}
    for name, tensor in found.items():
        assert torch.equal(tensor.flatten().sort().values, plain[name].flatten().sort().values), name
        assert torch.equal(both[name], tensor) or name.startswith(("model.enc.16x16_conv.", "model.map_layer"))


@pytest.fixture
def other(bench, teacher, tmp_path):
    """A network of the teacher's architecture with other weights."""
    path = tmp_path / "other.safetensors"
    write_snapshot(path, {name: tensor + 0.5 for name, tensor in teacher.state_dict.items()}, teacher.config)
    return path


def test_another_network_gives_its_weights_to_fine_tuning_and_to_training_from_scratch(bench, other):
    wanted = read_snapshot(other).state_dict
    assert not differing(generator(bench, init={"from": "other"}, file=other), wanted)
    assert not differing(generator(bench, "digits_edm", init={"from": "other"}, file=other), wanted)


def test_what_does_not_fit_is_refused_in_one_line_that_names_it(bench, other, tmp_path):
    def refused(**options):
        with pytest.raises(ValueError) as error:
            started(bench, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "model.nothing.*" in refused(init={"redraw": ["model.map_layer*", "model.nothing.*"]})
    assert refused(init={"from": "other"}).startswith("init: got no file")
    config = read_snapshot(other).config
    for changes, word in (({"model_channels": 8}, "other"), ({"img_resolution": 8, "attn_resolutions": []}, "8")):
        changed = config | changes
        write_snapshot(tmp_path / "small.safetensors", build_denoiser(changed).state_dict(), changed)
        assert word in refused(init={"from": "other"}, file=tmp_path / "small.safetensors")


def test_the_snapshot_at_0_images_has_the_initial_weights_and_a_resumed_run_keeps_it(bench, tmp_path):
    options = {"images": 96, "snapshots": [0, 96], "init": {"from": "none"}}
    document = bench.document("digits_edm", **options)
    arguments = bench.arguments(document, state=tmp_path / "state", output=tmp_path / "runs")
    bench.run(arguments)
    folder = tmp_path / "runs" / "digits_edm"
    start = load_file(folder / "snapshots/0.safetensors")
    assert not differing(start, generator(bench, "digits_edm", init={"from": "none"}))
    assert differing(start, load_file(folder / "snapshots/96.safetensors"))
    assert {path.stem for path in (folder / "watch").glob("*.png")} == {"0", "96"}
    # A longer run continues from the state, and has the snapshot of the start.
    before = (folder / "snapshots/0.safetensors").read_bytes()
    longer = bench.document("digits_edm", **options | {"images": 128, "snapshots": [0, 96, 128]})
    (work,) = (tmp_path / "state/digits_edm").iterdir()
    (work / "snapshots/0.safetensors").unlink()
    assert "resumed at 96" in bench.run(bench.arguments(longer, state=tmp_path / "state", output=tmp_path / "runs"))
    assert (folder / "snapshots/0.safetensors").read_bytes() == before
    files = json.loads((folder / "summary.json").read_text())["files"]
    assert [name for name in files if name.startswith("snapshots/0.")] == ["snapshots/0.safetensors"]
