"""Latents through the workflow: an autoencoder converted, digits encoded, two runs on latents, pixels measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autoencoder_folders import latent_config, small_folder
from onestep.archive import read_arrays
from onestep.checkpoints.snapshot import read_snapshot
from onestep.data.latent_zip import LatentZip
from snakemake_here import snakemake
from tiny import tiny_config, write_config


@pytest.mark.long
def test_from_an_autoencoder_to_a_table(tmp_path: Path) -> None:
    config = latent_config(tiny_config(), folder=small_folder(tmp_path / "vae"))
    del config["runs"]["digits_d2o_f"]
    table = config["tables"]["digits"]
    table |= {"seeds": ["0-31"], "columns": {"fd": "fd.frechet"}, "curves": None}
    table["rows"] = [{"run": "digits_edm", "sampler": "heun"}, {"run": "digits_d2o", "sampler": "one_step"}]
    write_config(tmp_path, config)
    snakemake(tmp_path, "results/tables/digits.md")
    results = tmp_path / "results"
    edm, d2o = json.loads((results / "tables/digits.json").read_text())
    assert all(np.isfinite(row["metrics"]["fd"]) for row in (edm, d2o))
    archive, codec = LatentZip(source=results / "data/latents.zip"), read_snapshot(results / "codecs/vae.safetensors")
    assert archive.codec is not None and archive.codec["weights_sha256"] == codec.note["sha256"]
    assert len(archive) == 1797 and archive.stored == (8, 8, 8)
    card = json.loads((results / "data/latents.json").read_text())
    assert card["resolution"] == 8 and len(card["latent_mean"]) == len(card["latent_std"]) == 4
    pixels, about = read_arrays(results / "samples/digits_d2o@320/one_step/0-31.npz")
    assert pixels["pixels"].shape == (32, 16, 16, 1) and about["codec_sha256"] == codec.note["sha256"]
    dry = snakemake(tmp_path, "results/tables/digits.md", "--dry-run")
    assert "Nothing to be done" in dry or "nothing to be done" in dry
    # Another autoencoder: latents, teacher, generator and samples are made again.
    small_folder(tmp_path / "other", seed=5)
    config["inputs"]["vae"] = {"file": str(tmp_path / "other")}
    write_config(tmp_path, config)
    again = snakemake(tmp_path, "results/tables/digits.md", "--dry-run", "--quiet", "reason")
    assert "latents" in again and "digits_edm" in again and "digits_d2o" in again
