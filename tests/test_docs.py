"""The documentation: every page is in the site, every link has a target, and the reference names every key and verb."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from onestep import cli, components
from onestep.config.run import Ema, Optimizer, Run, Schedule
from onestep.config.sections import Experiment, InputBlock, Launch
from onestep.config.tables import RowBlock, TableBlock
from preloaded import Program
from tiny import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "docs" / "tools"))
reference = pytest.importorskip("reference")
generated = pytest.importorskip("records")

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("[!.]*/README.md")])
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_has_a_target(page):
    targets = [each for each in LINK.findall(page.read_text()) if not re.match(r"https?:|mailto:|#", each)]
    generated = {REPOSITORY / "docs" / "reference" / name for name in ("config.md", "commands.md")}
    notebooks = {path.with_suffix(".md") for path in REPOSITORY.glob("docs/notebooks/*.ipynb")}
    found = {each: Path(os.path.normpath(page.parent / each.partition("#")[0])) for each in targets}
    assert [each for each, path in found.items() if not path.exists() and path not in generated | notebooks] == []


def test_every_page_is_in_the_navigation_and_the_other_way_round():
    def pages(entries):
        for entry in entries:
            (value,) = entry.values()
            yield from pages(value) if isinstance(value, list) else [value]

    navigation = list(pages(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]))
    assert len(navigation) == len(set(navigation))
    own = {path.relative_to(REPOSITORY / "docs").as_posix() for path in REPOSITORY.glob("docs/**/*.md")}
    assert own <= set(navigation)
    absent = set(navigation) - own
    assert absent == {
        *("index.md", "contributing.md", "changelog.md", "profiles.md", "containers.md"),
        *("notebooks/first_steps.md", "reference/config.md", "reference/commands.md"),
    }


def test_the_reference_has_every_section_key_and_choice():
    text = reference.config_reference()
    for kind in (Experiment, Run, Optimizer, Schedule, Ema, Launch, InputBlock, TableBlock, RowBlock):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in text or f"## {field.name}\n" in text, f"{kind.__name__}.{field.name}"
    for family in reference.FAMILIES:
        for name in components.choices(family):
            assert f"\n#### {name}\n" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| `state_seconds`")]
    assert [each.strip() for each in row.split("|")[2:5]] == ["number (> 0)", "`300`", "seconds"]


def test_the_reference_has_every_verb_with_its_options():
    text = reference.command_reference()
    for verbs in cli.GROUPS.values():
        for name in verbs:
            assert f"\n### onestep {name}\n" in text
    assert "--processes INT" in text
    assert "--no-" not in text


@pytest.mark.parametrize("page", generated.PAGES, ids=lambda page: page.name)
def test_the_pages_of_the_records_are_those_of_the_records(page):
    """Where this fails: python docs/tools/records.py."""
    assert page.read_text() == generated.PAGES[page]()


def test_the_readme_quotes_the_newest_record_of_the_demo():
    records = [each for each in generated.read_benchmarks(generated.RECORDS) if each["name"] == "demo"]
    if not records:
        pytest.skip("there is no record of the demo")
    rows = ("digits_edm.heun", "digits_edm.one_step", "digits_d2o.one_step", "digits_d2o_f.one_step")
    lines = [line.split("|") for line in (REPOSITORY / "README.md").read_text().splitlines() if " ± " in line]
    assert len(lines) == len(rows)
    for row, cells in zip(rows, lines, strict=True):
        for column, cell in zip(("fd", "is", "precision", "recall"), cells[5:9], strict=True):
            for name, shown in zip((column, f"{column}_std"), cell.strip(" *").split(" ± "), strict=True):
                unit = 10.0 ** -len(shown.partition(".")[2])
                assert float(shown) == pytest.approx(records[0]["numbers"][f"digits.{row}.{name}"], abs=0.501 * unit)


def test_the_picture_is_small_and_the_readme_short():
    readme = (REPOSITORY / "README.md").read_text()
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", readme)
    assert (REPOSITORY / picture).stat().st_size < 200_000
    assert len(readme.splitlines()) <= 180
    assert "make demo" in readme
    assert "make test" in readme


def test_the_wheel_marks_the_package_as_typed():
    assert (REPOSITORY / "src" / "onestep" / "py.typed").is_file()


def test_the_site_builds_without_a_warning(tmp_path):
    words = ("build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site"))
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    mkdocs = Path(importlib.util.find_spec("mkdocs").origin).with_name("__main__.py")
    done = Program(mkdocs, *words, environment=environment, folder=REPOSITORY)
    printed, _ = done.communicate(timeout=120)
    assert (done.returncode, printed) == (0, "")
    outside = re.compile(r'src="https?:|<link[^>]* href="https?:|@import|url\(https?:')
    assert (tmp_path / "site" / "reference" / "config.html").is_file()
    assert [page for page in (tmp_path / "site").rglob("*.html") if outside.search(page.read_text())] == []
