"""A config that `extends` another is that config with changes."""

from __future__ import annotations

import os
import shutil

import pytest
from changed_demo import DEMO

from onestep.config import ConfigError, experiment_document, read_experiment
from onestep.config.reading import read_launch


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_config_changes_the_one_that_it_extends(tmp_path):
    shutil.copy(DEMO, tmp_path / "demo.yaml")
    changed = written(
        tmp_path / "sites" / "mine.yaml",
        "extends: ../demo.yaml\n"
        "runs:\n"
        "  digits_d2o: {images: 20_000, vary: {seed: [4, 5]}, optimizers: {generator: {lr: 1.0e-3}}}\n"
        "  digits_d2o_f: null\n"
        "tables:\n"
        "  digits: {rows: [{run: digits_d2o, sampler: one_step}], seeds: [0-99]}\n"
        "launch: {device: cuda, gpus: gres, partition: long}\n",
    )
    demo, mine = read_experiment(DEMO), read_experiment(changed)
    members = {"digits_d2o.seed=4", "digits_d2o.seed=5"}
    assert set(mine.runs) == set(demo.runs) - {"digits_d2o", "digits_d2o_f"} | members
    run = mine.runs["digits_d2o.seed=5"]
    assert (run.images, run.seed, run.batch) == (20_000, 5, demo.runs["digits_d2o"].batch)
    assert (run.optimizers["generator"].lr, run.optimizers["discriminator"].lr) == (1.0e-3, 2.0e-4)
    assert mine.tables["digits"].rows[0].runs == ("digits_d2o.seed=4", "digits_d2o.seed=5")
    assert mine.tables["digits"].title == demo.tables["digits"].title
    assert read_launch(changed) == mine.launch and mine.launch.partition == "long"


def test_a_config_that_changes_nothing_is_the_other_one(tmp_path):
    first = written(tmp_path / "first.yaml", f"extends: {os.path.relpath(DEMO, tmp_path)}\n")
    second = written(tmp_path / "second.yaml", "extends: first.yaml\ntitle: null\n")
    assert experiment_document(read_experiment(first)) == experiment_document(read_experiment(DEMO))
    assert read_experiment(second).title is None


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ({"a.yaml": "extends: a.yaml\n"}, "a.yaml: extends: "),
        ({"a.yaml": "extends: b.yaml\n", "b.yaml": "extends: ./a.yaml\n"}, "b.yaml: extends: "),
        ({"a.yaml": "extends: [b.yaml]\n"}, "a.yaml: extends: "),
        ({"a.yaml": "extends: null\n"}, "a.yaml: extends: "),
        ({"a.yaml": 'extends: "b\\n.yaml"\n'}, "a.yaml: extends: "),
        ({"a.yaml": "extends: b.yaml\n"}, "b.yaml: "),
        ({"a.yaml": "extends: .\n"}, ".: "),
        ({"a.yaml": "extends: b.yaml\n", "b.yaml": "- runs\n"}, "b.yaml: "),
        ({"a.yaml": "extends: b.yaml\n", "b.yaml": ""}, "b.yaml: "),
        ({"a.yaml": "extends: b.yaml\nrums: {}\n", "b.yaml": "title: B\n"}, "a.yaml: rums: "),
    ],
)
def test_what_cannot_be_extended_is_refused_in_one_line(files, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        written(tmp_path / name, text)
    with pytest.raises(ConfigError) as caught:
        read_experiment("a.yaml")
    (line,) = caught.value.problems
    assert line.startswith(place) and "\n" not in line
