"""Runs of objective density_ratio: their defaults, and what is refused before any job."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from changed_demo import D2O, TAKEN_AWAY, demo_with, problems_at

from onestep.config import parse_experiment, run_document
from onestep.config.run import run_of
from onestep.fingerprint import training_components

RATIO = f"{D2O}.networks.ratio"
ADAM = {"lr": 1e-4}


def ratio_run(changes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return the demo with its run as one of density ratios, and no other in its table; then the changes."""
    own = {
        f"{D2O}.objective": {"name": "density_ratio", "divergence": "reverse_kl"},
        f"{D2O}.discriminator": TAKEN_AWAY,
        f"{D2O}.preconditioning": TAKEN_AWAY,
        f"{D2O}.networks": {"ratio": {"name": "ratio_unet"}},
        f"{D2O}.optimizers": {"generator": ADAM, "ratio": ADAM},
        "samplers.one": {"name": "one_step", "sigma": 2.5},
        "tables.digits.rows.2": {"run": "digits_d2o", "sampler": "one"},
    }
    return demo_with(own | dict(changes))


def test_defaults_are_those_of_the_objective():
    experiment = parse_experiment(ratio_run())
    document = run_document(experiment, "digits_d2o")
    assert document["networks"] == {"ratio": {"name": "ratio_unet", "weights": "teacher"}}
    assert document["preconditioning"] == "edm"
    assert document["optimizers"]["ratio"]["betas"] == [0.0, 0.999]
    assert run_of(document).run == experiment.runs["digits_d2o"]
    assert ("ratios", "ratio_unet") in training_components(document)


_NETWORK = {"name": "song_unet", "model_channels": 16, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "no block of the ratio network": ({f"{D2O}.networks": {}}, D2O, ("networks.ratio",)),
    "no optimizer of the ratio network": (
        {f"{D2O}.optimizers": {"generator": ADAM}},
        f"{D2O}.optimizers.ratio",
        ("missing",),
    ),
    "an unknown divergence": ({f"{D2O}.objective.divergence": "kl"}, f"{D2O}.objective.divergence", ("reverse_kl",)),
    "an unknown ratio network": ({RATIO: {"name": "ratio_net"}}, f"{RATIO}.name", ("mean ratio_unet",)),
    "unknown weights": ({f"{RATIO}.weights": "edm"}, f"{RATIO}.weights", ("'teacher' or 'random'",)),
    "weights of no teacher": (
        {f"{D2O}.teacher": TAKEN_AWAY, f"{D2O}.dropout": TAKEN_AWAY, f"{D2O}.network": _NETWORK},
        f"{RATIO}.weights",
        ("got teacher", "random"),
    ),
    "a clip whose ratio is no number": ({f"{D2O}.objective.clip": 100.0}, f"{D2O}.objective.clip", ("50",)),
    "an interval of a penalty that is in each step": (
        {f"{D2O}.objective.r1_every": 8},
        f"{D2O}.objective",
        ("r1_every: got 8", "approximate"),
    ),
    "a sampler at another level": (
        {"samplers.one.sigma": 80.0},
        "tables.digits.rows[2]",
        ("digits_d2o by one", "sigma 80,", "expected 2.5"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_train_is_refused_in_one_line(case):
    changes, place, words = WRONG[case]
    (line,) = problems_at(ratio_run(changes), place)
    assert all(word in line for word in words), line


def test_a_level_of_its_own_is_sampled_at():
    changes = {f"{D2O}.objective.sigma": 80.0, "samplers.one.sigma": 80.0}
    assert parse_experiment(ratio_run(changes)).runs["digits_d2o"].objective.options["sigma"] == 80.0


_FLAT = """
from torch import nn


class Flat(nn.Module):
    def __init__(self, *, img_resolution, img_channels, label_dim=0):
        super().__init__()
        self.layer = nn.Conv2d(img_channels, img_channels, 1)

    def forward(self, x, noise, condition=None):
        return self.layer(x)
"""


def test_a_teacher_s_network_without_an_encoder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "flat_network.py").write_text(_FLAT)
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = problems_at(ratio_run({"runs.digits_edm.network": {"name": "flat_network:Flat"}}), RATIO)
    assert "got the network Flat" in line and "encode" in line
