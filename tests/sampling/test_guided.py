"""Guidance: what it computes of the estimates of two networks, and where its second network comes from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from onestep.archive import read_arrays
from onestep.checkpoints.snapshot import write_snapshot
from onestep.cli import main
from onestep.files import sha256_of_file
from onestep.networks import build_denoiser, load_denoiser
from onestep.sampling.guided import Guided
from onestep.sampling.heun import Heun
from tiny import tiny_network


def _shifted(by):
    def estimate(x, sigma, condition):
        shift = 0.0 if condition is None else condition[:, :1, None, None]
        return 0.2 * x + by + shift

    return estimate


def _noise():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_estimates_are_moved_away_from_those_of_the_guide():
    classes, weight = torch.tensor([[1.0], [2.0], [3.0]]), 1.7
    guide = _shifted(-1.0)
    guide.label_dim = 1
    sampler = Guided(weight=weight, guide="weak", steps=4)
    found = sampler.with_guide(guide)(_shifted(0.5), _noise(), classes)
    wanted = Heun(steps=4)(_shifted(-1.0 + weight * 1.5), _noise(), classes)
    torch.testing.assert_close(found, wanted)
    assert sampler.nfe == 2 * Heun(steps=4).nfe == sampler.with_guide(guide).nfe
    guide.label_dim = 0  # a guide without classes does not see them
    found = sampler.with_guide(guide)(_shifted(0.5), _noise(), classes)
    wanted = Heun(steps=4)(_shifted(-1.0 + weight * 1.5), _noise(), weight * classes)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_network_is_its_own_guide_without_the_class():
    classes = torch.tensor([[1.0], [2.0], [3.0]])
    found = Guided(weight=3.0, steps=4)(_shifted(0.5), _noise(), classes)
    torch.testing.assert_close(found, Heun(steps=4)(_shifted(0.5), _noise(), 3.0 * classes))
    plain = Guided(weight=1.0, steps=4)(_shifted(0.5), _noise(), classes)
    torch.testing.assert_close(plain, Heun(steps=4)(_shifted(0.5), _noise(), classes))


def test_the_first_channels_alone_are_guided():
    classes, noise = torch.tensor([[1.0], [2.0], [3.0]]), torch.randn(3, 4, 8, 8)
    found = Guided(weight=3.0, steps=4, channels=3)(_shifted(0.5), noise, classes)
    guided, plain = (Heun(steps=4)(_shifted(0.5), noise, each * classes) for each in (3.0, 1.0))
    torch.testing.assert_close(found, torch.cat([guided[:, :3], plain[:, 3:]], dim=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 2.0, "steps": 1}, "steps: got 1"),
        ({"weight": 2.0, "sigma_min": 5.0, "sigma_max": 4.0}, "sigma_min, sigma_max: got 5.0, 4.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Guided(**options)


def test_a_guide_that_is_missing_or_of_other_images_is_refused():
    with pytest.raises(ValueError, match="guide: got no network of weak"):
        Guided(weight=2.0, guide="weak")(_shifted(0.0), _noise(), None)
    with pytest.raises(ValueError, match="guide: got none for a network without classes"):
        Guided(weight=2.0)(_shifted(0.0), _noise(), None)
    networks = [build_denoiser(tiny_network(label_dim=each, img_resolution=16)).eval() for each in (0, 3)]
    with pytest.raises(ValueError, match="guide: got label_dim 3, expected 0"):
        Guided(weight=2.0, guide="weak").with_guide(networks[1])(networks[0], torch.randn(1, 1, 16, 16), None)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two teachers in results/ of the working directory."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("strong", "weak")):
        torch.manual_seed(seed)
        config = tiny_network(preconditioning="edm", model_channels=16 - 8 * seed)
        network = build_denoiser(config)
        with torch.no_grad():  # the last layers are almost zero
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        (tmp_path / "results" / "teachers").mkdir(parents=True, exist_ok=True)
        write_snapshot(f"results/teachers/{name}.safetensors", network.state_dict(), config)
    return tmp_path


def test_the_command_line_reads_the_guide_by_its_name_or_file(models):
    files = [models / f"results/teachers/{name}.safetensors" for name in ("strong", "weak")]
    made = []
    for guide, output in (("weak", "a.npz"), (str(files[1]), "b.npz"), (str(files[0]), "c.npz")):
        sampler = json.dumps({"name": "guided", "guide": guide, "weight": 2.0, "steps": 2})
        assert main(["sample", "strong", output, "--seeds", "0-1", "--sampler", sampler]) == 0
        made.append(read_arrays(models / output).arrays["pixels"])
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


def test_the_pipeline_records_the_guide(models):
    sampler = json.dumps({"name": "guided", "guide": "weak", "weight": 2.0, "steps": 2})
    words = ["sample", "results/teachers/strong.safetensors", "a.npz", "--seeds", "0-1", "--sampler", sampler]
    assert main([*words, "--model", "strong", "--sampler-name", "auto"]) == 0
    found = read_arrays(models / "a.npz")
    assert found.about["guide_sha256"] == sha256_of_file(models / "results/teachers/weak.safetensors")
    assert found.about["evaluations"] == 6
    strong, weak = (load_denoiser(models / f"results/teachers/{name}.safetensors") for name in ("strong", "weak"))
    noise = torch.stack([torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2)])
    images = Guided(weight=2.0, guide="weak", steps=2).with_guide(weak)(strong, noise, None)
    pixels = (images * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.abs(found.arrays["pixels"].astype(int) - pixels).max() <= 1


def test_a_guide_that_is_not_there_is_one_line(models, capsys):
    sampler = json.dumps({"name": "guided", "guide": "nothing", "weight": 2.0})
    assert main(["sample", "strong", "a.png", "--sampler", sampler]) != 0
    assert "nothing: got no weights" in capsys.readouterr().err
