import base64
import dataclasses
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from results_tree import CONFIG, Story, other_method, planned, write, write_results

from onestep.config import read_experiment
from onestep.plan import Plan
from onestep.plan.report import table_options
from onestep.report.evidence import StudyEvidence, layout_of, read_evidence
from onestep.report.page import contact_sheet, networks_of, render, run_facts, shared_seeds, span
from onestep.report.table import Number, read_rows
from onestep.report.tabulation import tabulate

VOID = {"meta", "img", "br"}
HOSTILE = "d2o<script>alert(1)</script>"


class Page(HTMLParser):
    """What a page consists of; an element that is not closed where it should be is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def evidence_of(root: Path, story: Story):
    config = write_results(root / "results", story=story)
    return read_evidence(root / "results", config=config, benchmarks=root / "benchmarks", reproduce=("make demo",))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return evidence_of(tmp_path_factory.mktemp("work"), Story(other_code=("digits_d2o",)))


@pytest.fixture(scope="module")
def page(finished):
    return render(finished)


def changed_config(**changes):
    """Return CONFIG with sections changed by functions."""
    config = yaml.safe_load(CONFIG)
    for section, change in changes.items():
        change(config[section])
    return yaml.safe_dump(config, sort_keys=False)


def test_the_page_is_well_formed_and_needs_nothing_from_outside(page):
    found = Page(page)
    loaded = [attrs[name] for _, attrs in found.elements for name in ("src", "href", "data", "action") if name in attrs]
    assert loaded
    assert all(re.match(r"data:image/(png|svg\+xml);base64,|#", address) for address in loaded)
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in found.elements)
    assert not any(name.startswith("on") for _, attrs in found.elements for name in attrs)
    assert not re.search(r"@import|url\(", page)
    assert "default-src 'none'; img-src data:" in page


def test_links_lead_to_sections_of_the_page(page):
    found = Page(page)
    anchors = {attrs["id"] for _, attrs in found.elements if "id" in attrs}
    assert {attrs["href"][1:] for attrs in found.all("a")} <= anchors


def table_rows(text):
    table = text[text.index('<table class="results">') : text.index("</table>")]
    return re.findall(r"<tr>(.*?)</tr>", table, flags=re.S)


def test_the_title_and_the_caption_are_those_of_the_config(finished, page):
    assert "<h1>One-step generators of scanned digits</h1>" in page and "<h2>Digits, 16x16</h2>" in page
    assert 'class="lede"' not in page
    assert finished.tables[0].table.caption == ""


def test_a_caption_is_in_the_page_and_in_the_tables_files(tmp_path):
    config = changed_config(tables=lambda tables: tables["digits"].update(caption="D2O <reaches> EDM."))
    evidence = evidence_of(tmp_path, Story(config_text=config, images=8))
    assert "D2O <reaches> EDM." in Page(render(evidence)).text
    for suffix, caption in (("md", "D2O &lt;reaches> EDM."), ("tex", "% D2O <reaches> EDM.")):
        assert caption in (tmp_path / f"results/tables/digits.{suffix}").read_text()


def test_a_table_without_numbers_says_so(tmp_path):
    text = render(evidence_of(tmp_path, Story(fd={}, images=8)))
    rows = [Page(row).text for row in table_rows(text)[1:]]
    assert [row.count("not measured") for row in rows] == [4] * 4
    assert len(Page(text).all("svg")) == 0 and "against NFE" not in text


def test_the_table_shows_every_row_with_its_best_values_and_marks(page):
    rows = table_rows(page)[1:]
    assert [Page(row).text.replace(" \u00b1 ", "+-") for row in rows] == [
        "EDM, NFE 35 digits_edm heun 35 3.10+-0.05 8.795+-0.011 0.8429+-0.0012 0.739+-0.002 150,000 last 0 %",
        "EDM, NFE 1 digits_edm one_step 1 119.0+-1.8 2.73+-0.02 0.187+-0.002 0.0365+-0.0009 150,000 last 0 %",
        "D2O \u2020 digits_d2o one_step 1 1.90+-0.03 9.088+-0.007 0.8746+-0.0008 0.7960+-0.0014 40,000 last 0 %",
        "D2O-F digits_d2o_f one_step 1 2.30+-0.03 8.988+-0.009 0.8638+-0.0009 0.7764+-0.0017 40,000 last 79 %",
    ]
    assert [row.count('class="best"') for row in rows] == [0, 0, 4, 0]


def test_each_chart_is_a_picture_with_its_values_in_words(page):
    charts = [attrs for attrs in Page(page).all("img") if attrs["src"].startswith("data:image/svg+xml")]
    assert len(charts) == 2 + 7
    assert "FD, lower is better over NFE" in charts[0]["alt"] and "D2O 1.900 at 1" in charts[0]["alt"]
    assert "over images seen" in charts[1]["alt"] and "EDM, NFE 35 3.054" in charts[1]["alt"]
    for each in charts:
        root = ElementTree.fromstring(base64.b64decode(each["src"].partition(",")[2]))
        width, height = (float(number) for number in root.get("viewBox").split()[2:])
        assert int(each["width"]) / int(each["height"]) == pytest.approx(width / height, rel=0.01)


def sheets(page):
    return [attrs for attrs in Page(page).all("img") if attrs["src"].startswith("data:image/png")]


def test_every_row_is_shown_at_the_same_seeds(finished, page):
    found = sheets(page)
    assert len(found) == 4
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[2]["src"].partition(",")[2]))))
    assert sheet.shape[:2] == (int(found[2]["height"]), int(found[2]["width"]))
    pixels = finished.tables[0].samples[2]
    factor = sheet.shape[1] // (8 * 17 - 1)
    small = sheet[::factor, ::factor]
    assert np.array_equal(small[:16, :16, 0], pixels[0][..., 0])
    assert np.array_equal(small[17:33, 17:33, 0], pixels[9][..., 0])
    assert small[0, 16, 1] == 0


@pytest.mark.parametrize(("resolution", "columns"), [(16, 8), (64, 8), (512, 3)])
def test_large_images_are_shown_in_smaller_numbers(finished, resolution, columns):
    samples = (dict.fromkeys(range(80), np.zeros((resolution, resolution, 1), np.uint8)),) * 4
    text = render(dataclasses.replace(finished, tables=(dataclasses.replace(finished.tables[0], samples=samples),)))
    assert f"(0 to {columns**2 - 1})" in Page(text).text
    gap = max(1, resolution // 16)
    assert int(sheets(text)[0]["width"]) % (columns * (resolution + gap) - gap) == 0


def test_pictures_of_different_seeds_are_never_put_side_by_side():
    rows = [dict.fromkeys([0, 1, 2, 3], "image"), {}, dict.fromkeys([3, 2, 9, 8], "image")]
    assert shared_seeds(rows, count=5) == [2, 3]
    assert shared_seeds([{}], count=5) == []


def test_colour_images_keep_their_colours():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    picture = contact_sheet(pixels, columns=2, width=1, alt="two")
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2]))))
    assert (picture.width, picture.height) == (9, 4)
    assert np.array_equal(sheet[:, 5:, :3], pixels[1])


def test_the_page_has_what_made_the_numbers(page):
    text = Page(page).text
    for fact in (
        "39,700 trained (21 %), 149,581 frozen (79 %)",
        "train 11 min 10 s 5 jobs, longest 5 min 24 s",
        "PyTorch 2.12.1",
        "licence CC BY 4.0",
        "make demo",
        "run hash 0123456789abcdef, code fedcba9876543210",
    ):
        assert fact in text, fact


def test_a_run_has_its_cost(finished):
    run = next(run for run in finished.runs if run.name == "digits_d2o_f")
    found = run_facts(run)
    assert (found["objective"], found["images"], found["parameters"]) == ("d2o", "40,000", "189,281")
    assert (found["peak memory"], found["processes"], found["non-finite"]) == ("812 MiB", "1", "0")
    without_log = run_facts(dataclasses.replace(run, log=()))
    assert without_log["images / s"] == without_log["peak memory"] == "not logged"
    assert found["precision"] == "float32"
    arithmetic = {"tf32": True, "generator": "bfloat16", "discriminator": "float32", "deterministic": False}
    other = dataclasses.replace(run, summary={**run.summary, "arithmetic": arithmetic})
    assert run_facts(other)["precision"] == "generator bfloat16, tf32"


def test_the_config_is_shown_verbatim(page):
    shown = page[page.index("<summary>config.yaml</summary>") :]
    shown = shown[shown.index("<pre") : shown.index("</pre>") + 6]
    assert "".join(Page(shown).words) == CONFIG


def networks(folder, **changes):
    path = folder / "config.yaml"
    write(path, changed_config(**changes))
    experiment = read_experiment(path)
    rows = read_rows(folder / "results/tables/digits.json")
    return networks_of(
        dataclasses.replace(layout_of("digits", experiment=experiment), rows=rows), experiment=experiment
    )


def test_the_networks_of_metrics_and_discriminators_are_compared(tmp_path):
    evidence_of(tmp_path, Story(images=8))
    assert networks(tmp_path) == {"extractors": ["digits_metric"], "backbones": ["digits_backbone"], "shared": []}
    same = networks(tmp_path, features=lambda section: section["digits"].update(run="digits_backbone"))
    assert same["shared"] == ["digits_backbone"]


def test_networks_from_outside_are_compared_by_their_input(tmp_path):
    evidence_of(tmp_path, Story(images=8))

    def from_outside(config):
        config["inputs"] |= {"vgg": {"file": "/a"}, "inception": {"file": "/b"}}
        config["backbones"]["digits"] = {"timm": "vgg16_bn.tv_in1k", "input": "vgg"}
        config["features"]["digits"] = {"name": "inception", "input": "inception"}

    config = yaml.safe_load(CONFIG)
    from_outside(config)
    changes = {
        key: lambda section, key=key: (section.clear(), section.update(config[key]))
        for key in ("inputs", "backbones", "features")
    }
    found = networks(tmp_path, **changes)
    assert found == {"extractors": ["inception"], "backbones": ["vgg"], "shared": []}


def test_a_metric_on_the_networks_of_a_discriminator_is_marked(tmp_path):
    config = changed_config(features=lambda section: section["digits"].update(run="digits_backbone"))
    text = render(evidence_of(tmp_path, Story(config_text=config, images=8)))
    assert 'class="networks bad"' in text
    assert 'class="networks bad"' not in render(evidence_of(tmp_path / "plain", Story(images=8)))


STUDY = {
    "study": "fd_over_training",
    "question": "Does FD fall?",
    "verdict": "not confirmed",
    "rule": "FD at the end < FD at the start <",
    "numbers": {"first": 31.0, "last": 1.9},
    "control": {"teacher": 3.12345},
    "choices": ["seeds 0-1999"],
}


def test_a_study_is_shown_with_its_figure_verdict_rule_numbers_control_and_choices(finished):
    study = StudyEvidence(name="fd_over_training", found=STUDY, figure="<svg xmlns='http://www.w3.org/2000/svg'/>")
    text = render(dataclasses.replace(finished, studies=(study, dataclasses.replace(study, figure=""))))
    section = text[text.index('<section id="studies">') :].partition("</section>")[0]
    found = Page(section + "</section>")
    for part in ("not confirmed", STUDY["rule"], STUDY["question"], "first 31", "teacher 3.123", "seeds 0-1999"):
        assert part in found.text
    assert 'class="verdict not-confirmed"' in section
    (figure,) = found.all("img")
    assert base64.b64decode(figure["src"].partition(",")[2]).startswith(b"<svg")


def test_a_hostile_name_stays_text(tmp_path):
    def rename(tables):
        tables["digits"]["rows"][2]["label"] = HOSTILE
        tables["digits"]["title"] = HOSTILE

    text = render(evidence_of(tmp_path, Story(config_text=changed_config(tables=rename), images=8)))
    found = Page(text)
    assert not found.all("script")
    assert found.text.count(HOSTILE) >= 4
    assert any(HOSTILE in attrs["alt"] for attrs in found.all("img"))


def test_several_tables_have_a_section_each(tmp_path):
    def double(tables):
        tables["second"] = {**tables["digits"], "title": "Half", "columns": {"recall": "pr.recall"}, "curves": None}

    story = Story(config_text=changed_config(tables=double), images=8, published={"digits_d2o": {"recall": 0.9}})
    found = Page(render(evidence_of(tmp_path, story)))
    assert {"table-digits", "table-second"} <= {attrs.get("id") for attrs in found.all("section")}
    assert "recall against NFE" in found.text


def test_a_row_without_images_says_so(tmp_path):
    story = Story(images=8)
    config = write_results(tmp_path / "results", story=story)
    (tmp_path / "results/grids/digits_d2o@40000/one_step/0-1999.npz").unlink()
    evidence = read_evidence(tmp_path / "results", config=config, benchmarks=tmp_path / "benchmarks", reproduce=())
    text = Page(render(evidence)).text
    assert "not sampled" not in text and text.count("digits_d2o@40000/one_step/0-1999.npz") == 1
    assert evidence.tables[0].lost == ("", "", "missing", "")


def test_the_same_results_give_the_same_page(finished, page):
    assert render(finished) == page


def test_seeds_are_written_as_a_span():
    assert [span(seeds) for seeds in ([], [3], [0, 1, 2], [0, 5])] == [
        "none",
        "3 to 3",
        "0 to 2",
        "2 seeds from 0 to 5",
    ]


def test_another_method_has_its_source_and_no_images(finished):
    shown = finished.tables[0]
    columns = dict.fromkeys(shown.table.columns, Number())
    other = other_method("SiD", published={"fd": 1.923}, sources={"fd": "A <Paper>"}, images="~400 M", numbers=columns)
    more = dataclasses.replace(shown.table, rows=(*shown.table.rows, other))
    shown = dataclasses.replace(shown, table=more, samples=(*shown.samples, {}), curves=(*shown.curves, ()))
    text = render(dataclasses.replace(finished, tables=(shown,)))
    assert Page(table_rows(text)[-1]).text == (
        "SiD not run here 1 not measured 1.923 [1] not measured not measured not measured not measured ~400 M"
        " not published not published"
    )
    found = Page(text)
    assert "[1] A <Paper>" in found.text
    assert len(sheets(text)) == 4


def test_rows_of_several_datasets_say_which(finished):
    shown = finished.tables[0]
    rows = tuple(dataclasses.replace(row, snapshot=f"{row.snapshot}-ema5000") for row in shown.table.rows)
    shown = dataclasses.replace(shown, table=dataclasses.replace(shown.table, dataset=None, rows=rows))
    text = render(dataclasses.replace(finished, tables=(shown,)))
    heads, first = table_rows(text)[:2]
    assert Page(heads).text.startswith("Row Dataset Sampler NFE")
    assert Page(heads).text.endswith("Images Snapshot Frozen EMA")
    assert Page(first).text.startswith("EDM, NFE 35 digits_edm digits heun 35") and Page(first).text.endswith(
        "last 0 % 5,000 images"
    )


def test_a_family_of_runs_goes_from_the_config_to_the_page(tmp_path):
    evidence_of(tmp_path, Story(images=8))
    results = tmp_path / "results"
    for seed in (0, 1):
        for folder in ("runs", "metrics", "grids"):
            for path in sorted((results / folder).glob("digits_d2o*")):
                if path.name.partition("@")[0] == "digits_d2o":
                    name = path.name.replace("digits_d2o", f"digits_d2o.seed={seed}", 1)
                    copied = shutil.copytree(path, path.with_name(name))
                    for file in (each for each in copied.rglob("*") if each.suffix in (".json", ".yaml")):
                        text = file.read_text().replace("digits_d2o@", f"digits_d2o.seed={seed}@")
                        file.write_text(re.sub(r'(run"?: "?)digits_d2o\b', rf"\1digits_d2o.seed={seed}", text))
    measured = results / "metrics/digits_d2o.seed=1@40000/one_step/0-1999.fd.json"
    measured.write_text(measured.read_text().replace('"frechet": 1.8', '"frechet": 2.8'))
    config = yaml.safe_load(CONFIG)
    config["runs"]["digits_d2o"]["vary"] = {"seed": [0, 1]}
    config["runs"]["digits_d2o_f"].pop("vary", None)
    write(tmp_path / "config.yaml", yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False))
    plan = Plan.read(tmp_path / "config.yaml")
    table = json.loads(table_options(plan, "digits"))
    codes = {run: "fedcba9876543210" for run in plan.experiment.runs}
    tabulate(table=table, results=results, training_code=codes, output=results / "tables")
    evidence = read_evidence(results, config=tmp_path / "config.yaml", benchmarks=tmp_path / "none", reproduce=())
    row = evidence.tables[0].table.rows[2]
    assert (row.run, row.runs) == ("digits_d2o", ("digits_d2o.seed=0", "digits_d2o.seed=1"))
    assert row.numbers["fd"].shown == pytest.approx(1.9 + 0.5 / 3, abs=0.01)
    assert len(evidence.tables[0].curves[2]) == 4
    found = Page(render(evidence))
    assert "digits_d2o.seed=1" in found.text and "not sampled" not in found.text


def test_what_is_missing_or_damaged_is_named_in_table_and_page(tmp_path):
    story = Story(images=8)
    config = write_results(tmp_path / "results", story=story)
    results = tmp_path / "results"
    lost = "metrics/digits_d2o@40000/one_step/2000-3999.fd.json"
    (results / lost).unlink()
    spoilt = "metrics/digits_d2o_f@40000/one_step/0-1999.pr.json"
    (results / spoilt).write_text('{"values": {"precision": NaN}}')
    (results / "runs/digits_edm/log.jsonl").write_text("{}")
    (results / "runs/digits_metric/summary.json").unlink()
    tabulate(table=planned(story, name="digits"), results=results, training_code={}, output=results / "tables")
    table = (results / "tables/digits.md").read_text(encoding="utf-8")
    assert f"missing: {results}/{lost}" in table.replace("\\", "") and "(2 of 3 blocks)" in table
    assert f"damaged: {results}/{spoilt}" in table.replace("\\", "")
    evidence = read_evidence(results, config=config, benchmarks=tmp_path / "none", reproduce=())
    text = Page(render(evidence)).text
    for name in (lost, spoilt, "digits_edm/log.jsonl", "digits_metric/summary.json"):
        assert name in text
    path = results / "tables/digits.json"
    path.write_text(path.read_text().replace('"blocks"', '"blocks" ', 1))
    with pytest.raises(ValueError, match=r"digits\.json: got another content"):
        read_rows(path)
