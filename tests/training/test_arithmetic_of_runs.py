"""A run keeps the precision in which it began; half precision is for CUDA devices, as in the reference."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml

from onestep.config import read_experiment, run_document
from onestep.config.run import run_of
from onestep.distributed import Ranks
from onestep.training.loop import train
from onestep.training.run import assemble
from tiny import REPOSITORY

_HALF = {"precision": {"tf32": False, "generator": "bfloat16", "discriminator": "bfloat16"}}
_ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))


@pytest.fixture
def trained(bench, caplog):
    """Return a function that trains a run in a folder from its state, and what it returns and says."""

    def run(folder, *, changes, images=96, steps=None):
        document = yaml.safe_load(
            bench.document("digits_d2o", images=images, snapshots=[images], **changes).read_text()
        )
        training = assemble(run_of(document), files=bench.files(document), ranks=_ALONE)
        left = iter(range(10**9 if steps is None else steps))
        caplog.clear()
        done = train(
            training,
            folder=folder,
            ranks=_ALONE,
            state_seconds=math.inf,
            code="",
            stop=lambda: next(left, None) is None,
        )
        return done, " ".join(caplog.messages)

    return run


def _snapshot(folder, images=96):
    return (folder / f"snapshots/{images}.safetensors").read_bytes()


def test_on_a_cpu_half_precision_is_float32_and_recorded(trained, tmp_path):
    done, said = trained(tmp_path / "half", changes=_HALF)
    assert "bfloat16" in said
    found = {"tf32": False, "generator": "float32", "discriminator": "float32", "deterministic": False}
    assert done["arithmetic"] == found
    done, said = trained(tmp_path / "single", changes={})
    assert "arithmetic" not in done and "bfloat16" not in said
    assert _snapshot(tmp_path / "half") == _snapshot(tmp_path / "single")


def test_a_resumed_run_keeps_the_precision_in_which_it_began(trained, tmp_path):
    done, _ = trained(tmp_path / "new", changes=_HALF, steps=2)
    assert done is None
    done, said = trained(tmp_path / "new", changes=_HALF)
    assert done["arithmetic"]["generator"] == "float32" and "began" in said
    whole, _ = trained(tmp_path / "whole", changes=_HALF)
    assert _snapshot(tmp_path / "new") == _snapshot(tmp_path / "whole")

    # A state without a record has the precision of run.yaml: of a GPU, or of an earlier version.
    assert trained(tmp_path / "old", changes={}, steps=2)[0] is None
    done, said = trained(tmp_path / "old", changes=_HALF)
    assert done["arithmetic"]["generator"] == done["arithmetic"]["discriminator"] == "bfloat16" and "began" in said
    assert _snapshot(tmp_path / "old") != _snapshot(tmp_path / "whole")


def test_a_deterministic_run_trains_so(trained, tmp_path, monkeypatch):
    seen = []
    take = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda *each, **more: (seen.append(torch.are_deterministic_algorithms_enabled()), take(*each, **more))[1],
    )
    done, _ = trained(tmp_path, changes={"compile": {"deterministic": True}}, images=32)
    assert done["arithmetic"]["deterministic"] and seen and all(seen)
    assert not torch.are_deterministic_algorithms_enabled()


def test_runs_without_the_option_have_the_documents_of_before():
    document = run_document(read_experiment(REPOSITORY / "demo/config.yaml"), "digits_d2o")
    assert "deterministic" not in json.dumps(document)
