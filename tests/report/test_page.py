import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from results_tree import CONFIG, FD, Story, other_method, write_results

from onestep.report import facts, grids
from onestep.report.evidence import Samples, read_evidence
from onestep.report.page import render, write_page
from onestep.report.table import read_table
from onestep.report.views import span
from onestep.report.yaml_markup import highlight_yaml

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
    write_results(root / "results", story=story)
    return read_evidence(
        root / "results", config_text=story.config_text, benchmarks=root / "benchmarks", reproduce=("make demo",)
    )


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
    assert all(re.match(r"data:image/png;base64,|#", address) for address in loaded)
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in found.elements)
    assert not any(name.startswith("on") for _, attrs in found.elements for name in attrs)
    assert not re.search(r"@import|url\(", page)
    assert "default-src 'none'; img-src data:" in page


def test_links_lead_to_sections_of_the_page(page):
    found = Page(page)
    anchors = {attrs["id"] for _, attrs in found.elements if "id" in attrs}
    assert {attrs["href"][1:] for attrs in found.all("a")} <= anchors


def test_the_headline_is_the_claim_where_the_numbers_support_it(page):
    found = Page(page)
    assert "<h1>One network evaluation does the work of 35</h1>" in page
    assert "The numbers below support this" in found.text
    assert (
        "digits_d2o_f, with 79 % of its weights frozen, scores 2.30 \u00b1 0.03 with 1: better than with 35."
        in found.text
    )


def test_the_headline_says_so_where_the_numbers_do_not_support_the_claim(tmp_path):
    fd = FD | {("digits_d2o", "one_step"): 40.0, ("digits_d2o_f", "one_step"): 90.0}
    text = render(evidence_of(tmp_path, Story(fd=fd, images=8)))
    assert "<h1>One network evaluation does not replace 35 here</h1>" in text
    found = Page(text).text
    assert "The numbers below do not support the claim" in found
    assert "does the work of" not in found
    assert "digits_d2o scores 40.0 \u00b1 0.6 with 1: worse than with 35 by a factor of 13." in found


def test_no_headline_without_numbers(tmp_path):
    found = Page(render(evidence_of(tmp_path, Story(fd={}, images=8)))).text
    assert "Digits: no verdict" in found
    assert "No verdict from these numbers" in found
    assert "FD not measured" in found


def test_the_table_shows_every_row_with_its_best_values_and_marks(page):
    table = page[page.index('<table class="results">') : page.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", table, flags=re.S)[1:]
    assert [Page(row).text.replace(" \u00b1 ", "+-") for row in rows] == [
        "digits_edm heun 35 3.10+-0.05 8.795+-0.011 0.8429+-0.0012 0.739+-0.002 100,000 last 0 % frozen",
        "digits_edm one_step 1 119.0+-1.8 2.73+-0.02 0.187+-0.002 0.0365+-0.0009 100,000 last 0 % frozen",
        "digits_d2o \u2020 one_step 1 1.90+-0.03 9.088+-0.007 0.8746+-0.0008 0.7960+-0.0014 40,000 last 0 % frozen",
        "digits_d2o_f one_step 1 2.30+-0.03 8.988+-0.009 0.8638+-0.0009 0.7764+-0.0017 40,000 last 79 % frozen",
    ]
    assert [row.count("number best") for row in rows] == [0, 0, 4, 0]
    assert "Trained with other code" in page


def test_every_row_is_shown_at_the_same_seeds(finished, page):
    sheets = [attrs for attrs in Page(page).all("img") if attrs["alt"].startswith("Sheet")]
    assert len(sheets) == 4
    png = base64.b64decode(sheets[2]["src"].partition(",")[2])
    sheet = np.asarray(Image.open(io.BytesIO(png)))
    assert sheet.shape[:2] == (int(sheets[2]["height"]), int(sheets[2]["width"]))
    pixels = finished.tables[0].samples[2].pixels
    assert np.array_equal(sheet[0:64:4, 0:64:4, 0], pixels[0, ..., 0])
    assert np.array_equal(sheet[68:132:4, 68:132:4, 0], pixels[17, ..., 0])
    assert sheet[0, 64, 1] == 0


def test_pictures_of_different_seeds_are_never_put_side_by_side():
    pixels = np.zeros((4, 8, 8, 1), np.uint8)
    rows = [
        Samples(pixels=pixels, seeds=np.array([0, 1, 2, 3])),
        None,
        Samples(pixels=pixels, seeds=np.array([3, 2, 9, 8])),
    ]
    assert grids.shared_seeds(rows, count=5) == [2, 3]
    with pytest.raises(ValueError, match="no image of seed 9"):
        grids.pick(rows[0], seeds=[9])


@pytest.mark.parametrize(("resolution", "shape"), [(16, (16, 8)), (32, (16, 8)), (64, (16, 5)), (512, (4, 3))])
def test_large_images_make_smaller_sheets(resolution, shape):
    assert grids.sheet_shape(resolution, width=1080) == shape


def test_colour_images_keep_their_colours():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    picture = grids.contact_sheet(pixels, columns=2, width=1)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2]))))
    assert (picture.width, picture.height) == (9, 4)
    assert np.array_equal(sheet[:, 5:, :3], pixels[1])


def test_everything_that_made_the_numbers_is_told(page):
    text = Page(page).text
    for told in (
        "classifier.width 24 against 16, seed 2 against 1",
        "So the metric is not the loss in disguise.",
        "39,700 weights trained, 149,581 frozen",
        "21 % trained",
        "train 11 min 10 s 5 jobs, longest 5 min 24 s",
        "Trained with PyTorch 2.12.1",
        "licence CC BY 4.0",
        "make demo",
        "spec 0123456789abcdef, trained by code fedcba9876543210",
        "FD, lower is better (log scale)",
        "images seen in training",
    ):
        assert told in text, told


def test_the_config_is_shown_verbatim(page):
    shown = page[page.index("<summary>config.yaml</summary>") :]
    shown = shown[shown.index("<pre") : shown.index("</pre>") + 6]
    found = Page(shown)
    assert "".join(found.words) == CONFIG.rstrip("\n")


def test_the_metric_that_looks_through_the_discriminators_eyes_is_called_out(tmp_path):
    config = changed_config(features=lambda section: section["digits"].update(run="digits_backbone"))
    text = Page(render(evidence_of(tmp_path, Story(config_text=config, images=8)))).text
    assert "Caution: The metrics look through digits_backbone, and so did a discriminator." in text
    assert "not the loss in disguise" not in text


def test_pretrained_networks_are_told_apart_by_name(finished):
    config = yaml.safe_load(CONFIG)
    config["features"] = {"digits": {"name": "inception", "input": "inception"}}
    config["backbones"] = {"vgg": {"name": "vgg16"}}
    for run in config["runs"].values():
        if "discriminator" in run:
            run["discriminator"] = {"name": "projected", "backbones": ["vgg"]}
    (sentence,) = facts.independence(finished.tables[0].table, config=config)
    assert sentence == (
        "The metrics look through digits; the discriminators looked through vgg, another network. "
        "So the metric is not the loss in disguise."
    )


def test_a_hostile_name_stays_text(tmp_path):
    def rename(tables):
        tables["digits"]["rows"][2]["label"] = HOSTILE
        tables["digits"]["title"] = HOSTILE

    text = render(evidence_of(tmp_path, Story(config_text=changed_config(tables=rename), images=8)))
    found = Page(text)
    assert not found.all("script")
    assert found.text.count(HOSTILE) >= 5


def test_several_tables_have_their_own_claims(tmp_path):
    def double(tables):
        tables["second"] = {**tables["digits"], "title": "Half", "columns": {"recall": "pr.recall"}, "curves": None}

    story = Story(config_text=changed_config(tables=double), images=8, published={"digits_d2o": {"recall": 0.9}})
    found = Page(render(evidence_of(tmp_path, story)))
    assert {"table-digits", "table-second"} <= {attrs.get("id") for attrs in found.all("section")}
    assert "digits_edm scores recall" in found.text
    assert "published 0.9" in found.text


def test_a_row_without_images_says_so(tmp_path):
    story = Story(images=8)
    write_results(tmp_path / "results", story=story)
    (tmp_path / "results/grids/digits_d2o@40000/one_step/0-1999.npz").unlink()
    evidence = read_evidence(tmp_path / "results", config_text=CONFIG, benchmarks=tmp_path / "benchmarks", reproduce=())
    assert Page(render(evidence)).text.count("not sampled") == 2


def test_the_same_results_give_the_same_page(finished, page, tmp_path):
    write_page(tmp_path / "index.html", evidence=finished)
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == page


def test_a_table_reads_back_with_its_title(tmp_path):
    story = Story(images=8)
    write_results(tmp_path / "results", story=story)
    assert read_table(tmp_path / "results/tables/digits.json", config=story.config).title == "Digits"


def test_seeds_are_written_as_a_span():
    assert [span(seeds) for seeds in ([], [3], [0, 1, 2], [0, 5])] == [
        "none",
        "3 to 3",
        "0 to 2",
        "2 seeds from 0 to 5",
    ]


def test_yaml_stays_verbatim_under_its_markup():
    text = "a: {b: '# no', c: 1}  # yes\n  key.x: <b>\n- item: 2\n# all\nplain"
    marked = highlight_yaml(text)
    assert "".join(Page(f"<pre>{marked}</pre>").words) == text
    assert re.findall(r"<i>(.*?)</i>", str(marked)) == ["# yes", "# all"]
    assert re.findall(r"<b>(.*?)</b>", str(marked)) == ["a", "key.x", "item"]


def test_another_method_stands_in_the_table_with_its_source_and_draws_nothing(finished):
    shown = finished.tables[0]
    columns = {column: None for column in shown.table.columns}
    other = other_method("SiD", published={"fd": 1.923}, sources={"fd": "A <Paper>"}, images="~400 M", metrics=columns)
    more = dataclasses.replace(shown.table, rows=(*shown.table.rows, other))
    shown = dataclasses.replace(shown, table=more, samples=(*shown.samples, None))
    text = render(dataclasses.replace(finished, tables=(shown,)))
    table = text[text.index('<table class="results">') : text.index("</table>")]
    assert Page(re.findall(r"<tr>(.*?)</tr>", table, flags=re.S)[-1]).text == (
        "SiD not run here 1 not measured 1.923 [1] not measured not measured not measured not measured ~400 M"
    )
    found = Page(text)
    assert "[1] A <Paper>" in found.text
    assert len([attrs for attrs in found.all("img") if attrs["alt"].startswith("Sheet")]) == 4


def test_rows_of_several_datasets_say_which(finished):
    shown = finished.tables[0]
    rows = tuple(dataclasses.replace(row, snapshot=f"{row.snapshot}-ema5000") for row in shown.table.rows)
    shown = dataclasses.replace(shown, table=dataclasses.replace(shown.table, dataset=None, rows=rows), curves=())
    text = render(dataclasses.replace(finished, tables=(shown,)))
    table = text[text.index('<table class="results">') : text.index("</table>")]
    heads, first = re.findall(r"<tr>(.*?)</tr>", table, flags=re.S)[:2]
    assert Page(heads).text.startswith("Row Dataset Evaluations")
    assert Page(heads).text.endswith("Images seen Average")
    assert Page(first).text.startswith("digits_edm heun digits 35") and Page(first).text.endswith(
        "last 0 % frozen 5,000 images"
    )
