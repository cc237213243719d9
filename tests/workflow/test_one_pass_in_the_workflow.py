"""With `storage: none` a block passes from its seeds to its numbers in one job, and only numbers and grids stay."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from onestep.files import read_json
from tiny import selecting_config, write_config

TABLE = "results/tables/digits.json"


def narrow_config(**storage):
    """Return a config with one row on one block."""
    config = selecting_config() | {"storage": storage}
    table = config["tables"]["digits"]
    config["tables"] = {"digits": {**table, "rows": table["rows"][1:2], "seeds": ["0-31"]}}
    return config


def found_below(work, *folders):
    paths = (
        path for folder in folders for path in (work / "results" / folder).rglob("*digits_edm*/**/*") if path.is_file()
    )
    return {str(path.relative_to(work / "results")): path for path in paths}


@pytest.mark.long
def test_numbers_and_grids_are_those_of_files_and_nothing_else_stays(finished, tmp_path):
    pipeline = finished.copy(tmp_path)
    expected = {name: read_json(path) for name, path in found_below(finished.work, "metrics").items()}
    for folder in ("samples", "grids", "metrics"):
        shutil.rmtree(pipeline.work / "results" / folder)
    for path in found_below(pipeline.work, "features").values():
        path.unlink()
    write_config(pipeline.work, narrow_config(images="none", features="none"))
    dry = pipeline.snakemake("--dry-run", TABLE)
    assert "observe_digits" in dry.stdout + dry.stderr and "rule sample" not in dry.stdout + dry.stderr
    done = pipeline.snakemake(TABLE)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: read_json(path) for name, path in found_below(pipeline.work, "metrics").items()}
    assert len(found) == 3 and found == {name: expected[name] for name in found}
    assert not found_below(pipeline.work, "samples", "features")
    (name,) = found_below(pipeline.work, "grids")
    with np.load(pipeline.work / "results" / name) as new, np.load(finished.work / "results" / name) as old:
        assert all((new[key] == old[key]).all() for key in ("pixels", "labels", "seeds", "about"))
    again = pipeline.snakemake("--dry-run", TABLE)
    assert "Nothing to be done" in again.stdout + again.stderr
