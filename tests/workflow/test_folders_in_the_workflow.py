"""A folder of diffusers through the workflow: fetched, converted, sampled, fine-tuned by D2O and D2O-F, measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snakemake_here import snakemake
from tiny import tiny_config, write_config
from unet2d_folders import write_folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The demo with a UNet2DModel as the teacher, few images and one number."""
    write_folder(tmp_path / "unet")
    config = tiny_config()
    config["inputs"]["unet"] = {"file": "unet/", "licence": "Apache-2.0"}
    config["teachers"] = {"ddpm": {"weights": "unet"}}
    del config["runs"]["digits_edm"]
    for name in ("digits_d2o", "digits_d2o_f"):
        run = config["runs"][name]
        del run["preconditioning"]
        run |= {"teacher": "ddpm", "images": 160, "snapshot_every": 160}
        run["objective"]["sigma"] = 2.5
    ddim = {"name": "ddpm", "steps": 4, "variance": "none"}
    config["samplers"] = {"ddim": ddim, "one_step": {"name": "one_step", "sigma": 2.5}}
    table = config["tables"]["digits"]
    table |= {"seeds": ["0-31"], "columns": {"fd": "fd.frechet"}, "curves": None}
    rows = [row for row in table["rows"] if row["run"] != "digits_edm"]
    table["rows"] = [{"teacher": "ddpm", "sampler": "ddim"}, *rows]
    write_config(tmp_path, config)
    return tmp_path


@pytest.mark.long
def test_a_folder_is_taught_from_and_a_changed_one_is_converted_again(work: Path) -> None:
    snakemake(work, "results/tables/digits.md")
    teacher, d2o, d2o_f = json.loads((work / "results/tables/digits.json").read_text())
    assert (teacher["nfe"], d2o["nfe"], d2o_f["nfe"]) == (4, 1, 1)
    assert all(row["metrics"]["fd"] > 0 for row in (teacher, d2o, d2o_f))
    summary = json.loads((work / "results/runs/digits_d2o_f/summary.json").read_text())
    assert 0.7 < summary["frozen_share"] < 0.9
    assert "Nothing to be done" in snakemake(work, "--dry-run", "results/tables/digits.md")
    (work / "unet" / "diffusion_pytorch_model.safetensors").touch()
    planned = snakemake(work, "--dry-run", "results/tables/digits.md")
    assert "fetch input unet" in planned and "convert teacher ddpm" in planned
