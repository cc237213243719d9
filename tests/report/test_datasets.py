"""Real images of the page, rules of the config, the command, and pages of workflows that have not come far."""

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image
from results_tree import CONFIG, Story, write_results

from onestep.config import ConfigError, read_experiment
from onestep.report import command
from onestep.report.datasets import read_dataset
from onestep.report.evidence import read_evidence
from onestep.report.page import panels_of, render, title_of
from onestep.report.rules import ruling

CARD = {
    "images": 7,
    "resolution": 4,
    "channels": 1,
    "classes": 2,
    "images_per_class": [4, 3],
    "class_names": ["a", "b"],
}


def write_dataset(folder, **changes):
    """Write the card and the contact sheet of 4 and 3 images of the values 10, 11, ... and 20, 21, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "digits.json").write_text(json.dumps(CARD | changes))
    sheet = np.zeros((8, 16), np.uint8)
    for row, count in enumerate((4, 3)):
        for column in range(count):
            sheet[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 10 * (row + 1) + column
    Image.fromarray(sheet).save(folder / "digits.png")
    return folder / "digits.json"


def test_a_dataset_has_its_numbers_and_its_images_in_the_order_of_classes(tmp_path):
    found = read_dataset(write_dataset(tmp_path), name="digits")
    assert (found.images, found.resolution, found.per_class) == (7, 4, (("a", 4), ("b", 3)))
    assert [int(tile[0, 0, 0]) for tile in found.tiles] == [10, 11, 12, 13, 20, 21, 22]
    assert [int(tile[0, 0, 0]) for tile in found.spread(3)] == [10, 12, 20]
    assert len(found.spread(100)) == 7


@pytest.mark.parametrize("damage", ["cut", "size", "text"])
def test_a_damaged_contact_sheet_is_one_line_on_the_page(damage, tmp_path):
    config = write_results(tmp_path / "results", story=Story(images=8))
    sheet = write_dataset(tmp_path / "results" / "data").with_suffix(".png")
    if damage == "size":
        Image.fromarray(np.zeros((9, 16), np.uint8)).save(sheet)
    else:
        sheet.write_bytes(sheet.read_bytes()[:60] if damage == "cut" else b"no picture")
    evidence = read_evidence(tmp_path / "results", config=config, benchmarks=tmp_path / "none", reproduce=())
    assert evidence.datasets == ()
    assert [fault for fault in evidence.faults if "digits.png" in fault and "damaged" in fault]


def test_real_images_come_first_and_in_the_size_of_the_generated_ones(tmp_path):
    config = write_results(tmp_path / "results", story=Story(images=64))
    write_dataset(tmp_path / "results" / "data")
    evidence = read_evidence(tmp_path / "results", config=config, benchmarks=tmp_path / "none", reproduce=())
    page = render(evidence)
    sections = re.findall(r'<section id="([\w-]+)"', page)
    assert sections[:2] == ["data", "table-digits"]
    drawn = panels_of(evidence.tables[0], datasets=evidence.datasets)
    assert [panel.name for panel in drawn.panels] == [
        "Real images: digits",
        "EDM, NFE 35",
        "EDM, NFE 1",
        "D2O",
        "D2O-F",
    ]
    assert page.index("Images: Real images: digits") < page.index("Images: EDM, NFE 35")
    assert "a: 4, b: 3" in page


def changed(**changes):
    config = yaml.safe_load(CONFIG)
    config["tables"]["digits"] |= changes
    return config


def test_the_title_is_that_of_the_config_or_of_its_datasets(tmp_path):
    for title, expected in (("Mine", "Mine"), (None, "Results on digits")):
        config = changed() | {"title": title}
        story = Story(config_text=yaml.safe_dump(config, sort_keys=False), images=8)
        path = write_results(tmp_path / str(title) / "results", story=story)
        evidence = read_evidence(path.parent / "results", config=path, benchmarks=tmp_path, reproduce=())
        assert title_of(evidence) == expected
        assert f"<title>{expected}</title>" in render(evidence)


RULE = {"row": "digits_d2o/one_step", "column": "fd"}


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ({"at_most": 1, "times": "digits_edm/heun"}, "holds"),
        ({"at_most": 0.5, "times": "digits_edm/heun"}, "does not hold"),
        ({"at_least": 1.8}, "holds"),
        ({"at_most": 1.0}, "does not hold"),
        (None, None),
    ],
)
def test_a_judgement_is_that_of_the_rule_of_the_config(rule, verdict, tmp_path):
    config = changed(rule=None if rule is None else RULE | rule)
    story = Story(config_text=yaml.safe_dump(config, sort_keys=False), images=8)
    path = write_results(tmp_path / "results", story=story)
    evidence = read_evidence(tmp_path / "results", config=path, benchmarks=tmp_path / "none", reproduce=())
    page, stated = render(evidence), evidence.experiment.tables["digits"].rule
    assert ('class="rule"' in page) == (rule is not None)
    if stated is not None:
        assert ruling(stated, table=evidence.tables[0].table).verdict == verdict


@pytest.mark.parametrize(
    ("rule", "place"),
    [
        ({"row": "digits_d2o/heun", "column": "fd", "at_most": 1}, "tables.digits.rule.row"),
        (RULE | {"at_most": 1, "times": "edm"}, "tables.digits.rule.times"),
        (RULE | {"column": "fid", "at_most": 1}, "tables.digits.rule.column"),
        (RULE, "tables.digits.rule"),
        (RULE | {"at_most": 1, "at_least": 1}, "tables.digits.rule"),
    ],
)
def test_a_rule_of_nothing_is_refused(rule, place, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(changed(rule=rule), sort_keys=False))
    with pytest.raises(ConfigError) as refused:
        read_experiment(tmp_path / "config.yaml")
    assert place in str(refused.value)


def test_a_workflow_without_tables_yet_has_a_page(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    evidence = read_evidence(
        tmp_path / "results", config=tmp_path / "config.yaml", benchmarks=tmp_path / "none", reproduce=()
    )
    page = render(evidence)
    assert evidence.faults == () and page.count("not measured") >= 16 and page.count("not trained yet") == 12
    assert [row.label for row in evidence.tables[0].table.rows] == ["EDM", "EDM", "D2O", "D2O-F"]


@pytest.mark.parametrize(
    ("words", "folder", "expected"),
    [
        (
            ["/bin/snakemake", "--directory", "demo"],
            ".",
            ("cd ..  # from the folder of config.yaml", "snakemake --directory demo"),
        ),
        (["snakemake", "--profile", "local"], "demo", ("snakemake --profile local",)),
    ],
)
def test_the_command_is_that_which_was_typed(words, folder, expected, tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    environment: dict[str, str] = {}
    command.keep(words, folder=tmp_path / folder, environment=environment)
    command.keep(["another"], folder=tmp_path, environment=environment)
    monkeypatch.chdir(tmp_path / "demo")
    found = command.lines(tmp_path / "demo" / "config.yaml", environment=environment)
    assert found == expected
    profiled = command.lines(tmp_path / "config.yaml", environment=environment | {"SNAKEMAKE_PROFILE": "p"})
    assert ("SNAKEMAKE_PROFILE=p" in profiled[-1]) == ("--profile" not in words)
