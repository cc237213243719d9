"""Verbs that compute nothing import neither torch nor timm, also where these are installed."""

from __future__ import annotations

import json
import subprocess
import sys

from onestep.cli import WITHOUT_TORCH, main
from onestep.plan import Plan, report
from tiny import tiny_config, write_config

PROGRAM = """
import json, sys
from onestep.cli import main
for words in json.load(sys.stdin):
    code = main(words)
    print("done", words[0], code, [name for name in ("torch", "timm") if sys.modules.get(name) is not None])
"""


def test_no_verb_that_computes_nothing_imports_torch(tmp_path, monkeypatch):
    write_config(tmp_path, tiny_config())
    monkeypatch.chdir(tmp_path)
    plan = Plan.read("config.yaml")
    number = {"model": "a@1", "sampler": "s", "seeds": "0-1", "images": 2, "metric": "fd", "values": {"frechet": 1.0}}
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(number | {"better": {"frechet": "lower"}}))
    planned, codes = report.table_options(plan, "digits"), report.table_training_code(plan, "digits")
    written = ["--results", "results", "--output", "results/tables"]
    alone = ["--table", planned, "--training-code", codes, "--results", "results", "--output", "x"]
    assert main(["tabulate", *alone]) == 0
    choice = {"model": "digits_d2o@best-fd.frechet-one_step-0-31", "direction": "lower", "images": [320]}
    words = {
        "resolve": ["--config", "config.yaml", "--run", "digits_edm", "--output", "results/runs/digits_edm/run.yaml"],
        "status": [],
        "tabulate": ["--config", "config.yaml", "--name", "digits", *written],
        "report": ["--config", "config.yaml", "--results", "results", "--output", "results/report/index.html"],
        "show": ["results/tables/digits.json"],
        "fetch": ["--list"],
        "compare": ["a.json", "b.json"],
        "select": ["--choice", json.dumps(choice), "--results", "results", "--output", "x.safetensors"],
        "cancel": ["digits_edm"],
        "run": ["--config", "absent.yaml"],
    }
    assert words.keys() == WITHOUT_TORCH
    orders = json.dumps([[verb, *rest] for verb, rest in words.items()])
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=orders, capture_output=True, text=True)
    found = [line.split(maxsplit=3)[1:] for line in done.stdout.splitlines() if line.startswith("done ")]
    assert [verb for verb, _, _ in found] == list(words), done.stderr
    assert {imported for _, _, imported in found} == {"[]"}
    codes = {verb: code for verb, code, _ in found}
    assert [codes[verb] for verb in ("resolve", "status", "tabulate", "report", "show")] == ["0"] * 5, done.stderr
    assert (tmp_path / "results/tables/digits.json").read_bytes() == (tmp_path / "x/digits.json").read_bytes()
