"""The page in a real browser: nothing sticks out, nothing is cut off, nothing is asked of the network."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from results_tree import Story, other_method, write_results

from onestep.report.evidence import read_evidence
from onestep.report.page import render
from onestep.report.table import Number

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
WIDTHS = (1280, 720, 420)
TEXT = 8 * 96 / 72  # size of the text in a chart, in px

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser here: none of {', '.join(NAMES)} is on the PATH"),
]

# Runs in a copy of the page. Within a box that scrolls sideways, things may be wider than the screen.
MEASURE = """
<script>
addEventListener('load', () => {
  const box = element => element.getBoundingClientRect();
  const cut = [...document.querySelectorAll('body *')].filter(element =>
    !element.closest('.scroll, pre') && (box(element).right > innerWidth + .5 || box(element).left < -.5));
  const charts = [...document.images].filter(image => image.src.startsWith('data:image/svg'));
  parent.postMessage(JSON.stringify({
    width: innerWidth,
    page: document.documentElement.scrollWidth,
    cut: cut.map(element => element.tagName + '.' + element.className).slice(0, 9),
    scrolled: [...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth).length,
    images: [...document.images].map(image => image.naturalWidth),
    charts: charts.map(image => box(image).width / Number(image.getAttribute('width'))),
  }), '*');
});
</script>
"""
# A window has a least width; a frame within it has none.
FRAME = """<!doctype html><title>nothing measured</title>
<script>addEventListener('message', event => { document.title = event.data; });</script>
<iframe src="ADDRESS" width="WIDTH" height="900" style="border:0"></iframe>
"""


def browse(address, *flags, folder: Path):
    """Return what the browser prints."""
    profile = folder / "profile"
    profile.mkdir(exist_ok=True)
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags, address], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(page: Path, *, width: int, folder: Path):
    """Return the sizes that the page has in a window `width` pixels wide, by a script put into a copy of it."""
    text = page.read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)[0]
    copy, frame = folder / "measured.html", folder / "frame.html"
    copy.write_text(text.replace(policy, "").replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    frame.write_text(FRAME.replace("ADDRESS", copy.as_uri()).replace("WIDTH", str(width)))
    dom = browse(frame.as_uri(), "--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom", folder=folder)
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom)[1]))


def requested(address, *, folder: Path):
    """Return the addresses that a page asks the network for, in a browser that can reach no host.

    The browser asks some hosts of its own, for the time or an update; those requests have no page as their initiator.
    """
    log = folder / "net.json"
    browse(address, f"--log-net-log={log}", "--virtual-time-budget=2000", "--dump-dom", folder=folder)
    recorded = json.loads(log.read_text())
    start = recorded["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    starts = [event.get("params", {}) for event in recorded["events"] if event["type"] == start]
    urls = [each["url"] for each in starts if "url" in each and each.get("initiator") != "not an origin"]
    return [url for url in urls if not url.startswith(("file:", "data:"))]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("work")
    story = Story(other_code=("digits_d2o",), published={"digits_d2o": {"fd": 1.66}})
    config = write_results(root / "results", story=story)
    evidence = read_evidence(root / "results", config=config, benchmarks=root / "benchmarks", reproduce=("make demo",))
    path = root / "results" / "report" / "index.html"
    path.parent.mkdir(parents=True)
    path.write_text(render(evidence), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_and_nothing_is_cut_off(page, width, tmp_path):
    found = measured(page, width=width, folder=tmp_path)
    assert found["width"] == width
    assert found["page"] <= width
    assert found["cut"] == []
    assert found["scrolled"] == (0 if width > 1000 else 2)
    assert len(found["images"]) == 4 + 9
    assert min(found["images"]) > 0
    assert len(found["charts"]) == 9
    assert min(found["charts"]) * TEXT >= 9


@pytest.fixture(scope="module")
def crowded(page):
    """The page with the table of a paper: other methods in one column, and ours with many evaluations and with few."""
    root = page.parents[2]
    evidence = read_evidence(
        root / "results", config=root / "config.yaml", benchmarks=root / "benchmarks", reproduce=()
    )
    shown = evidence.tables[0]
    many, _, *tuned = shown.table.rows
    further = [replace(many, nfe=nfe, label=f"EDM, {nfe} evaluations, stochastic") for nfe in (79, 511)]
    numbers = dict.fromkeys(shown.table.columns, Number())
    others = [
        other_method(f"Method {place}", published={"fd": 1.5 + 0.02 * place**2}, numbers=numbers, nfe=1)
        for place in range(9)
    ]
    rows = tuple(replace(row, dataset=dataset) for dataset in "ab" for row in (many, *further, *tuned, *others))
    table = replace(shown.table, rows=rows, dataset=None)
    shown = replace(shown, table=table, samples=({},) * len(rows), curves=((),) * len(rows), lost=("",) * len(rows))
    path = page.parent / "crowded.html"
    path.write_text(render(replace(evidence, tables=(shown,))), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_of_many_rows_and_datasets_fits(crowded, width, tmp_path):
    found = measured(crowded, width=width, folder=tmp_path)
    assert (found["cut"], found["page"] <= width, len(found["charts"])) == ([], True, 2 + 7)
    assert min(found["charts"]) * TEXT >= 9


def test_a_tables_file_of_its_chart_is_painted(page, tmp_path):
    picture = tmp_path / "chart.png"
    chart = page.parents[1] / "tables" / "digits.svg"
    browse(chart.as_uri(), "--window-size=460,300", f"--screenshot={picture}", folder=tmp_path)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(float)
    assert (pixels.min(axis=2) > 250).mean() > 0.8  # a white sheet
    assert ((pixels.max(axis=2) - pixels.min(axis=2)) > 60).sum() > 200  # names and points in their colours


def test_what_sticks_out_would_be_seen(page, tmp_path):
    text = page.read_text(encoding="utf-8").replace("<main>", '<main><div class="wide" style="width:2000px">x</div>')
    (tmp_path / "broken.html").write_text(text, encoding="utf-8")
    found = measured(tmp_path / "broken.html", width=420, folder=tmp_path)
    assert found["page"] > 420
    assert found["cut"] == ["DIV.wide"]


def test_no_request_leaves_the_machine(page, tmp_path):
    assert requested(page.as_uri(), folder=tmp_path) == []


def test_a_request_would_be_seen(tmp_path):
    (tmp_path / "asks.html").write_text('<!doctype html><img src="http://example.invalid/pixel.png">')
    assert requested((tmp_path / "asks.html").as_uri(), folder=tmp_path) == ["http://example.invalid/pixel.png"]


def screenshot(page, folder, *flags):
    browse(page.as_uri(), *flags, f"--screenshot={folder / 'page.png'}", folder=folder)
    return np.asarray(Image.open(folder / "page.png").convert("L")).astype(float)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_painted(page, width, tmp_path):
    pixels = screenshot(page, tmp_path, f"--window-size={width},1400", "--blink-settings=preferredColorScheme=1")
    assert pixels.shape == (1400, width)
    # A page of text and pictures is neither blank nor one gray.
    assert (pixels < 64).mean() > 0.02
    assert (pixels > 192).mean() > 0.3


def test_in_dark_mode_the_page_and_the_text_of_its_charts_change_sides(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    charts = re.findall(r'<img src="data:image/svg[^>]*>', text)
    style = text[text.index("<style>") : text.index("</style>")]
    (tmp_path / "charts.html").write_text(f"<!doctype html>{style}</style><body>{charts[0]}")
    shades = {}
    for name, scheme in (("light", 1), ("dark", 0)):
        flags = ("--window-size=480,400", f"--blink-settings=preferredColorScheme={scheme}")
        shades[name] = screenshot(tmp_path / "charts.html", tmp_path, *flags)
    assert np.median(shades["light"]) > 240 and (shades["light"] < 64).sum() > 100
    assert np.median(shades["dark"]) < 40 and (shades["dark"] > 200).sum() > 100
