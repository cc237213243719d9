"""A long sampling that is killed continues with the images that it has, and ends with the same bytes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from onestep.checkpoints.snapshot import write_snapshot
from onestep.distributed import Ranks
from onestep.evaluation.extraction import FeatureNetwork
from onestep.evaluation.fused_sampling import sample_features
from onestep.features import Features
from onestep.networks import build_denoiser
from onestep.sampling import _parts
from onestep.sampling._job import SamplingJob, write_samples
from onestep.sampling.one_step import OneStep
from tiny import tiny_network

_ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))


class _Killed(BaseException):
    """What no one catches, as the end of a process."""


class _Counted:
    """A sampler that counts its calls, and ends the job in one of them."""

    nfe, calls, last = 1, 0, 10**9

    def __call__(self, generator, noise, condition, *, random=None):
        type(self).calls += 1
        if self.calls > self.last:
            raise _Killed
        return OneStep()(generator, noise, condition)


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(_parts, "SECONDS", 0.0)
    monkeypatch.setattr(_Counted, "calls", 0)
    monkeypatch.setattr(_Counted, "last", 10**9)
    torch.manual_seed(0)
    config = tiny_network(label_dim=3, img_resolution=8, model_channels=8)
    write_snapshot(tmp_path / "a.safetensors", build_denoiser(config).state_dict(), config)
    return SamplingJob(
        weights=tmp_path / "a.safetensors",
        sampler=_Counted(),
        options={"name": "counted"},
        seeds=range(5, 165),
        batch=64,
        subject={},
        parts=tmp_path / ".parts",
    )


def _killed(job, monkeypatch, *, after, write):
    monkeypatch.setattr(_Counted, "last", after)
    with pytest.raises(_Killed):
        write(job)
    monkeypatch.setattr(_Counted, "last", 10**9)
    monkeypatch.setattr(_Counted, "calls", 0)


class _Mean:
    def __call__(self, pixels):
        return Features(features=pixels.float().mean(dim=(2, 3)), probabilities=None)


def _observed(tmp_path, name):
    network = FeatureNetwork(extractor=_Mean(), weights=tmp_path / "a.safetensors", options={"name": "mean"})
    grid, output = (tmp_path / f"{name}.{kind}.npz" for kind in ("grid", "features"))
    return lambda job: sample_features(job, {output: network}, grid=grid, ranks=_ALONE), (grid, output)


def _sampled(tmp_path, name):
    grid, output = (tmp_path / f"{name}.{kind}.npz" for kind in ("grid", "images"))
    return lambda job: write_samples(job, output=output, grid=grid), (grid, output)


@pytest.mark.parametrize("verb", [_sampled, _observed])
def test_it_samples_only_what_is_missing_and_leaves_nothing_behind(job, tmp_path, monkeypatch, verb):
    write, whole = verb(tmp_path, "whole")
    write(dataclasses.replace(job, parts=None))
    assert _Counted.calls == 3 and not job.parts.exists()

    monkeypatch.setattr(_Counted, "calls", 0)
    write, made = verb(tmp_path, "killed")
    _killed(job, monkeypatch, after=2, write=write)
    assert not made[1].exists() and job.parts.exists()
    write(job)
    assert _Counted.calls == 1 and not job.parts.exists()
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in whole]


@pytest.mark.parametrize("change", ["weights", "sampler", "seeds", "damage"])
def test_images_of_something_else_are_sampled_again(job, tmp_path, monkeypatch, change):
    write, made = _sampled(tmp_path, "images")
    _killed(job, monkeypatch, after=2, write=write)
    if change == "weights":
        config = tiny_network(label_dim=3, img_resolution=8, model_channels=8)
        write_snapshot(job.weights, build_denoiser(config).state_dict(), config)
    elif change == "damage":
        for path in job.parts.iterdir():
            path.write_bytes(path.read_bytes()[:-100])
    changes = {"sampler": {"options": {"name": "counted", "sigma": 1.0}}, "seeds": {"seeds": range(160)}}
    changed = dataclasses.replace(job, **changes.get(change, {}))
    write(changed)
    assert _Counted.calls == 3 and not job.parts.exists()


def test_a_short_sampling_writes_no_parts(job, tmp_path, monkeypatch):
    monkeypatch.setattr(_parts, "SECONDS", 300.0)
    monkeypatch.setattr(_Counted, "last", 2)
    with pytest.raises(_Killed):
        write_samples(job, output=tmp_path / "images.npz", grid=None)
    assert not job.parts.exists()
