"""Inputs in the workflow: planned while absent, fetched by local rules, and required before any job offline."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import threading
from pathlib import Path

import pytest

from onestep.cli import main
from onestep.files import read_json
from onestep.plan import Plan, inputs, report
from snakemake_here import run_snakemake
from tiny import tiny_config, write_config

EDM = "results/inputs/edm/edm.pkl"
MINE = "results/inputs/mine/table.pkl"


@pytest.fixture
def site(tmp_path):
    """The address of a server of one file."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "edm.pkl").write_bytes(b"weights")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        with contextlib.suppress(OSError):
            server.shutdown()


@pytest.fixture
def config(tmp_path, site):
    config = tiny_config()
    config["inputs"] |= {
        "edm": {"url": f"{site}/edm.pkl"},
        "faces": {"published": "ffhq"},
        "mine": {"file": "mine/table.pkl"},
    }
    config["teachers"]["edm"] = {"pickle": "edm"}
    config["class_embeddings"] = {"mine": {"input": "mine"}}
    config["runs"]["digits_d2o"] |= {"teacher": "edm", "conditional": True}
    config["runs"]["digits_d2o"]["discriminator"] |= {"class_embeddings": "mine"}
    write_config(tmp_path / "work", config)
    return config


@pytest.mark.long
def test_an_absent_input_is_planned_but_stops_an_offline_workflow(config, tmp_path, monkeypatch):
    work = tmp_path / "work"
    code, text = run_snakemake(work, "--dry-run")
    assert code != 0 and "mine/table.pkl" in text  # a local file has to be there
    (work / "mine").mkdir()
    (work / "mine" / "table.pkl").write_bytes(b"table")
    code, text = run_snakemake(work, "--dry-run")
    assert code == 0, text
    assert EDM in text and MINE in text and "ffhq" not in text  # a run needs its own inputs alone
    code, text = run_snakemake(work, "results/inputs/digits/digits.csv.gz", EDM, ONESTEP_OFFLINE="1")
    assert code != 0 and "inputs/edm/edm.pkl" in text and "onestep fetch --only edm" in text
    assert not (work / "results").exists()
    monkeypatch.chdir(work)
    assert main(["fetch", "--only", "edm"]) == 0
    code, text = run_snakemake(work, "results/inputs/digits/digits.csv.gz", EDM, ONESTEP_OFFLINE="1")
    assert code == 0, text
    assert (work / EDM).read_bytes() == b"weights"


def test_a_present_input_is_enough_offline_and_a_mirror_reruns_nothing(config, tmp_path, monkeypatch):
    work = tmp_path / "work"
    monkeypatch.chdir(work)
    monkeypatch.setenv("ONESTEP_OFFLINE", "1")
    plan = Plan.read("config.yaml")
    with pytest.raises(ValueError) as stopped:
        inputs.stop_if_absent_offline(plan, "edm")
    assert "inputs/edm/edm.pkl" in str(stopped.value)
    Path("inputs/edm").mkdir(parents=True)
    Path("inputs/edm/edm.pkl").write_bytes(b"weights")
    assert inputs.stop_if_absent_offline(plan, "edm") == []
    mirrored = Plan.read(write_config(work, config | {"mirrors": {"https://example.org/": "file:///data/"}}))
    assert inputs.fetched_from(mirrored, "edm") == inputs.fetched_from(plan, "edm")
    assert report.page_options(mirrored) == report.page_options(plan)


def test_a_changed_folder_changes_its_fetch_job_alone(tmp_path, monkeypatch):
    config, folder = tiny_config(), tmp_path / "work" / "pets"
    config["inputs"]["pets"] = {"file": "pets/"}
    write_config(tmp_path / "work", config)
    monkeypatch.chdir(tmp_path / "work")
    folder.mkdir()
    (folder / "a.png").write_bytes(b"1")

    def job() -> str:
        return inputs.fetched_from(Plan.read("config.yaml"), "pets")

    first, record = job(), Path("results/inputs/pets/pets.folder")
    assert main(["fetch", "--source", first, "--output", str(record)]) == 0
    assert job() == first
    (folder / ".DS_Store").write_bytes(b"x")
    assert job() == first, "what is no data does not count"
    os.utime(folder / "a.png", ns=(1, 1))
    assert job() != first
    folder.rename(tmp_path / "elsewhere")
    assert job() == first, "results are valid without the folder"
    (tmp_path / "elsewhere").rename(folder)
    # A record of versions without states: the job had no such parameter.
    (folder / ".DS_Store").unlink()
    old = {key: value for key, value in read_json(record).items() if key != "state"}
    record.write_text(json.dumps(old))
    assert "state" not in job()
    (folder / "b.png").write_bytes(b"2")
    assert "state" in job()
