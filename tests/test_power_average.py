"""Averages with power-function profiles: the recorded numbers, and averages made of others against kept ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from onestep.checkpoints.post_hoc import NOTE, write_average
from onestep.checkpoints.snapshot import read_snapshot, write_snapshot
from onestep.cli import main
from onestep.config.run import Ema
from onestep.power_average import Profile, coefficients, exponent_of, std_of
from onestep.training.averages import averages_of
from onestep.training.ema import ema_decay
from recorded_edm2 import networks_of

_TRACKED = (0.05, 0.1)


@pytest.fixture
def recorded(golden):
    return networks_of(golden).load("edm2_training.npz")


@pytest.mark.golden
def test_exponents_factors_and_coefficients(recorded):
    exponents = [exponent_of(float(std)) for std in recorded["stds"]]
    np.testing.assert_allclose(exponents, recorded["exps"], rtol=1e-9)
    np.testing.assert_allclose([std_of(each) for each in exponents], recorded["stds_back"], rtol=1e-9)
    batch = 2048
    found = [
        [ema_decay(int(end) - batch, batch=batch, half_life=1.0, ramp_up=0.0, power=power) for end in row]
        for power, row in zip(exponents, [recorded["beta_t_next"]] * 3, strict=True)
    ]
    np.testing.assert_allclose(found, recorded["beta"], rtol=1e-9)
    basis = zip(recorded["coefficients_in_ofs"], recorded["coefficients_in_std"], strict=True)
    wanted = [Profile(64, exponent_of(float(std))) for std in recorded["coefficients_out_std"]]
    solved = coefficients([Profile(images, exponent_of(float(std))) for images, std in basis], wanted)
    np.testing.assert_allclose(solved, recorded["coefficients"], rtol=1e-9, atol=1e-13)  # of an ill-conditioned system


@pytest.mark.parametrize("std", [0.0, -0.1, 0.2887, 1.0])
def test_deviations_without_a_profile_are_refused(std):
    with pytest.raises(ValueError, match="relative standard deviation: got"):
        exponent_of(std)


class _Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.moving, self.held = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.rand(3), requires_grad=False)
        self.register_buffer("counted", torch.tensor(0))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Snapshots of a random walk: two averages at each of eight times, and others at the end."""
    folder, network = tmp_path_factory.mktemp("kept"), _Weights()
    averages = averages_of(network, Ema(power=(*_TRACKED, 0.07, 0.15)))
    steps = torch.Generator().manual_seed(3)
    for step in range(400):
        with torch.no_grad():
            network.moving += torch.randn(3, generator=steps)
            network.counted += 1
        for average in averages.values():
            average.update(images_seen=10 * step, batch=10)
        if (step + 1) % 50 == 0:
            for suffix, average in averages.items():
                note = {} if average.power is None else {NOTE: {"exponent": average.power, "images": 10 * step + 10}}
                path = folder / f"{10 * step + 10}{suffix}.safetensors"
                write_snapshot(path, average.published(), {"name": "walk"}, note={"sampler": None, **note})
    return folder


def basis(folder, *, until=4000):
    return [folder / f"{images}-ema{std}.safetensors" for images in range(500, until + 1, 500) for std in _TRACKED]


@pytest.mark.parametrize(("std", "until"), [(0.07, 4000), (0.15, 4000), (0.07, 2000)])
def test_an_average_made_afterwards_is_near_the_one_that_was_kept(kept, tmp_path, std, until):
    output = tmp_path / "made.safetensors"
    write_average(basis(kept, until=until), output, std=std)
    made, wanted = read_snapshot(output), read_snapshot(kept / f"{until}-ema{std}.safetensors")
    nearest = read_snapshot(kept / f"{until}-ema{0.05 if std < 0.1 else 0.1}.safetensors")
    error = made.state_dict["moving"] - wanted.state_dict["moving"]
    assert error.norm() <= 0.15 * (nearest.state_dict["moving"] - wanted.state_dict["moving"]).norm()
    assert torch.equal(made.state_dict["held"], wanted.state_dict["held"])
    assert torch.equal(made.state_dict["counted"], wanted.state_dict["counted"])
    assert made.config == {"name": "walk"}
    assert made.note == {"sampler": None, NOTE: {**wanted.note[NOTE], "snapshots": until // 250}}


def test_one_that_was_kept_comes_back(kept, tmp_path):
    words = ["average", "--snapshots", *map(str, basis(kept)), "--std", "0.1", "--output", str(tmp_path / "made")]
    assert main(words) == 0
    made, wanted = read_snapshot(tmp_path / "made"), read_snapshot(kept / "4000-ema0.1.safetensors")
    for name, tensor in wanted.state_dict.items():
        torch.testing.assert_close(made.state_dict[name], tensor)


@pytest.mark.parametrize("case", ["none", "another kind", "twice", "another network", "no file", "damaged", "std"])
def test_what_is_no_basis_is_refused_in_a_line(kept, tmp_path, capsys, case):
    paths, std = basis(kept), "0.5" if case == "std" else "0.08"
    odd = tmp_path / "odd.safetensors"
    if case == "none":
        paths = []
    elif case == "another kind":
        paths.append(kept / "4000.safetensors")
    elif case == "twice":
        odd.write_bytes(paths[0].read_bytes())
        paths.append(odd)
    elif case == "another network":
        write_snapshot(odd, {"other": torch.zeros(1)}, {}, note={NOTE: {"exponent": 3.0, "images": 1}})
        paths.append(odd)
    elif case == "no file":
        paths.append(odd)
    elif case == "damaged":
        odd.write_bytes(paths[0].read_bytes()[:-8])
        paths.append(odd)
    words = ["--snapshots", *map(str, paths)] if paths else []
    assert main(["average", *words, "--std", std, "--output", str(tmp_path / "made.safetensors")]) != 0
    said = capsys.readouterr().err.strip()
    assert "\n" not in said or case == "none"
    assert not (tmp_path / "made.safetensors").exists()
