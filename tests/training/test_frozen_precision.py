"""Frozen weights in bfloat16: rounded, half as large, published as the run has them, and part of the run hash."""

from __future__ import annotations

import pytest
import torch
import yaml
from test_peers import run_document as peer_document
from test_recompute import NETWORKS, SIZE

from onestep.bench.estimate import run_footprint
from onestep.checkpoints.snapshot import read_snapshot
from onestep.config import parse_experiment, run_document
from onestep.config.identity import spec_of
from onestep.config.run import run_of
from onestep.distributed import Ranks
from onestep.networks import build_denoiser, load_denoiser, store_frozen_weights
from onestep.training.log import write_snapshots
from onestep.training.loop import take_step, wrapped_networks
from onestep.training.resume import Resume
from onestep.training.run import assemble
from onestep.training.step import set_training_mode
from tiny import tiny_config

_RANKS = Ranks(rank=0, world=1, device=torch.device("cpu"))


def rounded(network, names):
    """Return a network's state dict with the named tensors rounded to bfloat16 and back."""
    return {
        name: tensor.bfloat16().float() if name in names else tensor for name, tensor in network.state_dict().items()
    }


def stored_names(network):
    return {name for name, parameter in network.named_parameters() if parameter.dtype == torch.bfloat16}


_GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


@pytest.mark.parametrize("device", ["cpu", _GPU])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_as_with_rounded_weights_in_float32(name, bfloat16, device):
    torch.manual_seed(0)
    config = {"name": name, **SIZE, **NETWORKS[name], "dropout": 0.0}
    network, plain = build_denoiser(config), build_denoiser(config)
    frozen = [p for key, p in network.named_parameters() if "dec" in key or "up_blocks" in key]
    for parameter in frozen:
        parameter.requires_grad_(False)
    assert store_frozen_weights(network) == sum(p.numel() for p in frozen if p.dtype == torch.bfloat16)
    names = stored_names(network)
    assert names and all(network.get_parameter(key).ndim >= 2 for key in names)
    # All of a level's numbers but the few of biases and norms.
    assert sum(network.get_parameter(key).numel() for key in names) > 0.9 * sum(p.numel() for p in frozen)
    plain.load_state_dict(rounded(network, names))
    for each in (network, plain):
        each.to(device).image_type = torch.bfloat16 if bfloat16 else torch.float32
    images = torch.randn(2, 1, 16, 16).to(device).requires_grad_()
    found = []
    for each in (network, plain):
        out = each(images, 1.0, torch.eye(3, device=device)[:2])
        out.square().sum().backward()
        found.append([out, *(p.grad for key, p in each.named_parameters() if network.get_parameter(key).requires_grad)])
    for one, other in zip(*found, strict=True):
        # On a GPU sums may be taken in another order each time.
        assert torch.equal(one, other) if device == "cpu" else torch.allclose(one, other, rtol=1e-2, atol=1e-3)
    assert all(p.grad is None for p in frozen)


def training_of(bench, **changes):
    document = yaml.safe_load(bench.document("digits_d2o", batch=8, **changes).read_text())
    return assemble(run_of(document), files=bench.files(document), ranks=_RANKS)


def test_a_run_keeps_resumes_and_publishes_the_rounded_weights(bench, tmp_path):
    changes = {"freeze": ["conv", "proj"], "frozen_precision": "bfloat16", "images": 24, "snapshots": [16, 24]}
    training = training_of(bench, **changes)
    generator = training.networks["generator"]
    teacher, names = load_denoiser(bench.folder / "teacher.safetensors").state_dict(), stored_names(generator)
    assert names and all(".conv" in name or ".proj" in name for name in names)
    resume = Resume(training, folder=tmp_path, ranks=_RANKS, code="")
    assert resume.restore() == 0
    set_training_mode(training.networks, phases=training.phases)
    wrapped = wrapped_networks(training)
    for images_seen in (0, 8):
        take_step(training, images_seen=images_seen, ranks=_RANKS, wrapped=wrapped)
    written = write_snapshots(training, before=8, now=16, folder=tmp_path)
    snapshot = read_snapshot(tmp_path / "snapshots/16.safetensors")
    assert list(written) == ["snapshots/16.safetensors"] and snapshot.note["frozen_precision"] == "bfloat16"
    for name, tensor in snapshot.state_dict.items():
        assert tensor.dtype == torch.float32
        if name in names:
            assert torch.equal(tensor, teacher[name].bfloat16().float()), name
        elif generator.get_parameter(name).requires_grad if name in dict(generator.named_parameters()) else False:
            assert not torch.equal(tensor, teacher[name]), name
    resume.save(images_seen=16, log=resume.log, window=resume.window)
    again = training_of(bench, **changes)
    assert Resume(again, folder=tmp_path, ranks=_RANKS, code="").restore() == 16
    for name, tensor in again.networks["generator"].state_dict().items():
        assert tensor.dtype == generator.state_dict()[name].dtype
        assert torch.equal(tensor, generator.state_dict()[name]), name


def test_a_frozen_teacher_is_stored_and_a_run_without_frozen_weights_is_one_line(bench):
    document = yaml.safe_load(bench.document("digits_d2o", batch=8).read_text())
    document = peer_document(document, "dmd2") | {"frozen_precision": "bfloat16"}
    networks = assemble(run_of(document), files=bench.files(document), ranks=_RANKS).networks
    stored = {role: bool(stored_names(network)) for role, network in networks.items()}
    assert stored == {"generator": False, "fake": False, "teacher": True, "discriminator": False}
    with pytest.raises(ValueError, match="frozen_precision: got bfloat16, expected none"):
        training_of(bench, frozen_precision="bfloat16")


def _experiments():
    config = tiny_config()
    plain = parse_experiment(config)
    config["runs"]["digits_d2o_f"]["frozen_precision"] = "bfloat16"
    return plain, parse_experiment(config)


def test_it_is_part_of_the_run_hash():
    one, other = (run_document(each, "digits_d2o_f") for each in _experiments())
    assert "frozen_precision" not in one and other == {**one, "frozen_precision": "bfloat16"}
    assert spec_of(one, digests={}, code=None) != spec_of(other, digests={}, code=None)


@pytest.mark.long
def test_the_estimate_knows_it():
    before, after = (run_footprint(each, "digits_d2o_f", on_cuda=False) for each in _experiments())
    generator = before.averages / 4 / 0.21  # numbers of its parameters, of which 79 % are frozen
    assert 2 * 0.7 * generator < before.weights - after.weights < 2 * 0.8 * generator
    assert (before.averages, before.moments, before.gradients) == (after.averages, after.moments, after.gradients)
