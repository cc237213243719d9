"""`onestep fetch` of all inputs of a config or some of them; listed, verified, offline."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from misbehaving_server import CONTENT, OTHER, SHA256

from onestep.cli import main
from tiny import tiny_config, write_config


@pytest.fixture
def config(server, work):
    """A config whose runs need digits, a teacher and class embeddings, and which names what nothing needs."""
    server.put("/edm.pkl", CONTENT)
    server.put("/eye.safetensors", OTHER)
    config = tiny_config()
    config["inputs"] |= {
        "edm": {"url": server.address("/edm.pkl"), "licence": "CC BY-NC-SA 4.0"},
        "eye": {"url": server.address("/eye.safetensors"), "size": len(OTHER)},
        "idle": {"published": "d2o-ffhq-f"},
    }
    config["teachers"]["edm"] = {"pickle": "edm"}
    config["class_embeddings"] = {"eye": {"input": "eye"}}
    config["runs"]["digits_d2o"] |= {"teacher": "edm", "conditional": True}
    config["runs"]["digits_d2o"]["discriminator"] |= {"class_embeddings": "eye"}
    write_config(work, config)
    return config


def printed(capsys):
    """Return the lines of standard output, and those of errors."""
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("onestep fetch: ")]
    return captured.out.splitlines(), errors


def test_what_runs_and_tables_need_is_fetched_and_no_more(server, config, capsys):
    assert main(["fetch"]) == 0
    lines, _ = printed(capsys)
    assert lines == [
        "digits: part of scikit-learn",
        f"edm: inputs/edm/edm.pkl, 300,000 bytes, sha256 {SHA256}",
        *[line for line in lines if line.startswith("eye: inputs/eye/eye.safetensors, 280,000 bytes, sha256 ")],
    ]
    assert len(lines) == 3 and Path("inputs/edm/edm.pkl").read_bytes() == CONTENT


def test_offline_checks_all_and_names_each_missing_with_its_command(server, config, capsys):
    assert main(["fetch", "--offline"]) == 1
    lines, errors = printed(capsys)
    assert lines == ["digits: part of scikit-learn"]
    assert [line for line in errors if "`onestep fetch --only edm`" in line and "inputs/edm/edm.pkl" in line]
    assert [line for line in errors if "`onestep fetch --only eye`" in line] and len(errors) == 2
    assert main(["fetch"]) == 0
    asked = [len(served.ranges) for served in server.files.values()]
    assert main(["fetch", "--offline"]) == 0
    assert [len(served.ranges) for served in server.files.values()] == asked == [1, 1]


def test_only_takes_inputs_of_the_config_and_published_names(server, config, capsys):
    assert main(["fetch", "--only", "edm", "digits"]) == 0
    assert [line.partition(":")[0] for line in printed(capsys)[0]] == ["edm", "digits"]
    assert main(["fetch", "--only", "idle", "--only", "d2o-cifar-cond-f"]) == 1
    _, errors = printed(capsys)
    assert "inputs/ffhq_d2o_f.pkl" in errors[0] and "Google Drive" in errors[0]
    assert "inputs/cifar_cond_d2o_f.pkl" in errors[1]
    assert main(["fetch", "--only", "emd"]) == 1
    (error,) = printed(capsys)[1]
    assert "--only: " in error and "'emd'" in error and "digits, edm, eye, idle" in error


def test_the_list_shows_what_is_here_and_what_else_is_published(config, capsys):
    assert main(["fetch", "--only", "edm"]) == 0
    capsys.readouterr()
    assert main(["fetch", "--list"]) == 0
    lines, _ = printed(capsys)
    assert lines[0].startswith("digits  here    sklearn/datasets/data/digits.csv.gz of scikit-learn; CC BY 4.0")
    assert lines[1].startswith("edm     here    http://") and lines[1].endswith("/edm.pkl; CC BY-NC-SA 4.0")
    assert lines[2].startswith("eye     absent  http://") and "280,000 bytes; terms not stated" in lines[2]
    assert "edm-cifar10-32x32-uncond-ve" in lines[3] and "d2o-ffhq-f" not in lines[3]


def test_verify_checks_all_that_is_here(config, capsys):
    assert main(["fetch", "--verify"]) == 0
    assert printed(capsys)[0] == ["digits: not here yet", "edm: not here yet", "eye: not here yet"]
    assert main(["fetch"]) == 0
    source = json.dumps({"url": config["inputs"]["edm"]["url"]})
    assert main(["fetch", "--source", source, "--output", "results/inputs/edm/edm.pkl"]) == 0
    capsys.readouterr()
    assert main(["fetch", "--verify"]) == 0
    assert f"edm: inputs/edm/edm.pkl, 300,000 bytes, sha256 {SHA256}" in printed(capsys)[0]
    Path("inputs/eye/eye.safetensors").write_bytes(CONTENT)
    Path("results/inputs/edm/edm.pkl").write_bytes(OTHER)
    assert main(["fetch", "--verify"]) == 1
    _, errors = printed(capsys)
    assert " results/inputs/edm/edm.pkl: " in errors[0] and f"expected {SHA256}" in errors[0]
    assert " inputs/eye/eye.safetensors: " in errors[1] and "300,000 bytes, expected 280,000" in errors[1]


def test_the_configs_folder_is_the_working_directory(config, work, monkeypatch, capsys):
    (work / "elsewhere").mkdir()
    monkeypatch.chdir(work / "elsewhere")
    assert main(["fetch", "--config", "../config.yaml", "--only", "edm"]) == 0
    assert (work / "inputs/edm/edm.pkl").exists() and not os.listdir()


def test_an_input_provided_by_hand_is_here_once_it_exists(config, work, capsys):
    config["inputs"]["edm"] = {"file": "by_hand/edm.pkl"}
    write_config(work, config)
    assert main(["fetch", "--only", "edm"]) == 1
    (error,) = printed(capsys)[1]
    assert " edm: " in error and "by_hand/edm.pkl" in error and "inputs.edm.file" in error
    (work / "by_hand").mkdir()
    (work / "by_hand/edm.pkl").write_bytes(CONTENT)
    assert main(["fetch", "--only", "edm"]) == 0
    assert main(["fetch", "--verify", "--only", "edm"]) == 0
    assert printed(capsys)[0] == ["edm: is here", f"edm: by_hand/edm.pkl, sha256 {SHA256}"]
