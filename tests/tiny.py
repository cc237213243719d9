"""The demo's config in a size that trains in seconds: the same runs, rows and names."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]


def tiny_config() -> dict[str, Any]:
    """Return demo/config.yaml with a few steps a run and a few images a block."""
    config = json.loads(_demo())
    for run in config["runs"].values():
        run |= {"batch": 32, "images": 320, "snapshot_every": 160 if "discriminator" in run else 320}
        if "discriminator" in run:
            run["objective"] |= {"r1_every": 4}
    config["samplers"]["heun"]["steps"] = 3
    config["metrics"]["is"]["splits"] = 2
    config["tables"]["digits"]["seeds"] = ["0-31", "32-63"]
    config["tables"]["digits"]["curves"]["seeds"] = "0-31"
    return config


@functools.cache
def _demo() -> str:
    """Return the demo's config as JSON, so that runs which share a block by a YAML alias each have their own."""
    return json.dumps(yaml.safe_load((REPOSITORY / "demo" / "config.yaml").read_text()))


def selecting_config() -> dict[str, Any]:
    """Return the tiny config with a second average, and a table of the best snapshot of it beside another method."""
    config = tiny_config()
    config["runs"]["digits_d2o"]["ema"]["others"] = [4]  # below what ramp_up leaves of the main one
    config["tables"]["chosen"] = {
        "title": "Chosen",
        "dataset": "digits",
        "seeds": ["0-31"],
        "select": "best_fd",
        "columns": {"fd": "fd.frechet"},
        "rows": [
            {"run": "digits_d2o", "sampler": "one_step", "ema": 4, "published": {"fd": 2.5}},
            {"label": "Other", "nfe": 1, "images": "~9 M", "published": {"fd": {"value": 1.5, "source": "A Paper"}}},
        ],
    }
    return config


def tiny_network(**changes: Any) -> dict[str, Any]:
    """Return the config of an unconditional one-step generator of grey 16x16 images, for `build_denoiser`."""
    return {
        "name": "song_unet",
        "model_channels": 16,
        "channel_mult": [1],
        "num_blocks": 1,
        "attn_resolutions": [],
        "img_resolution": 16,
        "img_channels": 1,
        "label_dim": 0,
        "preconditioning": "d2o",
        **changes,
    }


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """Write `config` as the config.yaml of a working directory."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def density_ratio_run(document: dict[str, Any], *, ratio: dict[str, Any], **objective: Any) -> dict[str, Any]:
    """Return the block of a D2O run, or its document, as one of objective density_ratio with a ratio network."""
    adam = document["optimizers"]["generator"]
    changed = {
        "objective": {"name": "density_ratio", **objective},
        "networks": {"ratio": ratio},
        "optimizers": {"generator": adam, "ratio": adam},
        "preconditioning": "edm",
    }
    return {key: value for key, value in document.items() if key != "discriminator"} | changed
