"""Tables as files, quoted as they are written."""

# ruff: noqa: E501

import csv
import dataclasses
import io
import json
import re

import pytest
from results_tree import number, other_method, row

from onestep.files import sha256_of_file
from onestep.report.formats import as_csv, as_latex, as_markdown, latex
from onestep.report.table import Table, recorded_digests
from onestep.report.tabulation import write_table

TABLE = Table(
    name="small",
    title="Ours & theirs_1 | 100 %",
    dataset="digits",
    seeds=("0-1999", "2000-3999"),
    show="mean",
    columns={"fd": "fd.frechet", "recall": "pr.recall"},
    directions={"fd": "lower", "recall": "higher"},
    drawn="fd",
    rows=(
        row(
            "teacher",
            "heun",
            fd=(3.1041, 0.0432, 2, False),
            recall=(0.7, None, 1, True),
            nfe=35,
            images_seen=None,
            frozen_share=None,
            published={"fd": 3.0},
            sources={"fd": "EDM_1, Table 2 [v2]"},
            snapshot="teacher",
            snapshot_policy=None,
            ema=None,
        ),
        row(
            "d2o_f",
            "one_step",
            fd=(2.25, 0.125, 2, True),
            recall=(0.5, 0.0625, 2, False),
            frozen_share=0.79,
            trained_with_other_code=True,
            snapshot_policy="lowest FD of 4, seeds 0-1999",
        ),
        row("d2o|<b>", "one_step", fd=None, recall=None, published={"fd": 1.54}),
        other_method("SiD", published={"fd": 1.923}, sources={"fd": "EDM_1, Table 2 [v2]"}, images="~400 M"),
    ),
)

HEAD = [
    "run",
    "sampler",
    "NFE",
    "images",
    "frozen",
    "snapshot",
    "FD \u2193",
    "FD published",
    "FD difference",
    "recall \u2191",
]
HERE, PUBLISHED, MEASURED = "not trained here", "not published", "not measured"
CELLS = [
    ["teacher", "heun", "35", HERE, HERE, HERE, "3.10 \u00b1 0.04", "3 \\[1\\]", "+0.10", "**0.7000** (1 of 2 blocks)"],
    [
        "d2o_f \u2020",
        "one_step",
        "1",
        "40,000",
        "79 %",
        "lowest FD of 4, seeds 0-1999",
        "**2.25 \u00b1 0.12**",
        PUBLISHED,
        PUBLISHED,
        "0.50 \u00b1 0.06",
    ],
    ["d2o\\|&lt;b>", "one_step", "1", "40,000", "0 %", "last", MEASURED, "1.54", MEASURED, MEASURED],
    ["SiD", "not run here", "1", "\\~400 M", PUBLISHED, PUBLISHED, MEASURED, "1.923 \\[1\\]", MEASURED, MEASURED],
]

CSV = """\
run,sampler,label,dataset,nfe,images_seen,snapshot,snapshot_policy,average,frozen_share,shown,\
fd,fd_std,fd_blocks,fd_best,fd_published,fd_difference,fd_source,\
recall,recall_std,recall_blocks,recall_best,trained_with_other_code
teacher,heun,teacher,digits,35,not trained here,teacher,not trained here,not trained here,not trained here,mean of the blocks,\
3.1041,0.0432,2,false,3.0,0.10409999999999986,"EDM_1, Table 2 [v2]",0.7,one block,1,true,false
d2o_f,one_step,d2o_f,digits,1,40000,d2o_f@40000,"lowest FD of 4, seeds 0-1999",5000,0.79,mean of the blocks,\
2.25,0.125,2,true,not published,not published,not published,0.5,0.0625,2,false,true
d2o|<b>,one_step,d2o|<b>,digits,1,40000,d2o|<b>@40000,last,5000,0.0,mean of the blocks,\
not measured,not measured,0,false,1.54,not measured,no source given,not measured,not measured,0,false,false
not run here,not run here,SiD,digits,1,~400 M,not published,not published,not published,not published,mean of the blocks,\
not measured,not measured,0,false,1.923,not measured,"EDM_1, Table 2 [v2]",not measured,not measured,0,false,false
"""

LATEX = r"""% Ours & theirs_1 | 100 %
\begin{tabular}{llrrrlrrrr}
\toprule
run & sampler & NFE & images & frozen & snapshot & FD $\downarrow$ & FD published & FD difference & recall $\uparrow$ \\
\midrule
teacher & heun & 35 & not trained here & not trained here & not trained here & $3.10 \pm 0.04$ & 3 [1] & +0.10 & $\mathbf{0.7000}$ (1 of 2 blocks) \\
d2o\_f$^\dagger$ & one\_step & 1 & 40,000 & 79 \% & lowest FD of 4, seeds 0-1999 & $\mathbf{2.25 \pm 0.12}$ & not published & not published & $0.50 \pm 0.06$ \\
d2o\textbar{}\textless{}b\textgreater{} & one\_step & 1 & 40,000 & 0 \% & last & not measured & 1.54 & not measured & not measured \\
SiD & not run here & 1 & \textasciitilde{}400 M & not published & not published & not measured & 1.923 [1] & not measured & not measured \\
\bottomrule
\multicolumn{10}{l}{\footnotesize Mean $\pm$ standard deviation over 2 blocks of seeds (0-1999, 2000-3999).} \\
\multicolumn{10}{l}{\footnotesize Bold: the best of its column ($\downarrow$ lower is better, $\uparrow$ higher is better).} \\
\multicolumn{10}{l}{\footnotesize $^\dagger$ Trained with other code: the training code has changed since this snapshot was made.} \\
\multicolumn{10}{l}{\footnotesize Not run here: another method, with the numbers of its authors.} \\
\multicolumn{10}{l}{\footnotesize [1] EDM\_1, Table 2 [v2]} \\
\end{tabular}
"""


def markdown_cells(text):
    """Return the cells of a Markdown table, and the sides to which its columns are aligned."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, ruler, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
    return head, ["right" if each.endswith(":") else "left" for each in ruler], rows


def test_markdown_has_these_cells():
    text = as_markdown(TABLE)
    head, sides, rows = markdown_cells(text)
    assert (head, rows) == (HEAD, CELLS)
    assert [name for name, side in zip(head, sides, strict=True) if side == "left"] == ["run", "sampler", "snapshot"]
    title, *_, last = text.splitlines()
    assert title == "### Ours &amp; theirs_1 \\| 100 %"
    assert last == "\\[1\\] EDM_1, Table 2 \\[v2\\]  "
    assert text.count("\u2020") == 2


def test_a_caption_is_above_the_cells():
    table = dataclasses.replace(TABLE, caption="One step & 35.")
    assert as_markdown(table).splitlines()[2] == "One step &amp; 35."
    assert as_latex(table).splitlines()[1] == "% One step & 35."
    assert as_csv(table) == CSV


def test_csv_is_exactly_this():
    assert as_csv(TABLE) == CSV


def test_latex_is_exactly_this():
    assert as_latex(TABLE) == LATEX


def test_no_cell_is_blank():
    for line in [*csv.reader(io.StringIO(as_csv(TABLE))), *markdown_cells(as_markdown(TABLE))[2]]:
        assert all(line)


def test_every_latex_row_fills_the_columns_and_every_brace_closes():
    text = as_latex(TABLE)
    bare = re.sub(r"\\[{}$&#_%]", "", text.partition("\n")[2])
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    body = bare.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert [line.count("&") for line in body] == [9] * 4
    assert all(line.endswith(r"\\") for line in body)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("50 % of a_b & #1 {x} $y$", r"50 \% of a\_b \& \#1 \{x\} \$y\$"),
        (
            "a\\b~c^d<e>f|g",
            r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\textless{}e\textgreater{}f\textbar{}g",
        ),
        ("\u00b1 \u2020 \u2193 \u2191 \u2212", r"$\pm$ $^\dagger$ $\downarrow$ $\uparrow$ $-$"),
    ],
)
def test_latex_reads_nothing_in_a_name_as_a_command(text, escaped):
    assert latex(text) == escaped


def test_all_five_files_are_written_with_their_digests(tmp_path):
    write_table(tmp_path, table=TABLE)
    written = sorted(path for path in tmp_path.glob("small.*") if path.suffix != ".sha256")
    assert [path.suffix for path in written] == [".csv", ".json", ".md", ".svg", ".tex"]
    assert recorded_digests(tmp_path / "small.json") == {path.name: sha256_of_file(path) for path in written}
    assert (tmp_path / "small.md").read_text(encoding="utf-8") == as_markdown(TABLE)
    rows = json.loads((tmp_path / "small.json").read_text())
    assert rows[2]["metrics"] == {"fd": None, "recall": None}
    assert rows[2]["published"] == {"fd": 1.54}


@pytest.mark.parametrize(("show", "words"), [("first", "first block"), ("best", "best block")])
def test_a_table_of_single_blocks_shows_no_deviation(show, words):
    table = dataclasses.replace(TABLE, show=show)
    markdown, latex_text = as_markdown(table), as_latex(table)
    blocks = "of 2 blocks of seeds (0-1999, 2000-3999)"
    assert blocks in markdown and blocks in latex_text
    assert markdown_cells(markdown)[2][1][6:] == ["**2.250**", PUBLISHED, PUBLISHED, "0.5000"]
    assert r"$\mathbf{2.250}$" in latex_text
    assert "\u00b1" not in markdown and r"\pm" not in latex_text
    lines = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert {line["shown"] for line in lines} == {words}
    assert "fd_std" not in lines[0] and lines[1]["fd"] == "2.25" and lines[0]["fd_difference"].startswith("0.104")


def test_a_family_of_runs_shows_its_deviation_in_any_table():
    numbers = {"fd": number((2.0, 0.5, 2, False)), "recall": number(None)}
    family = dataclasses.replace(TABLE.rows[1], models=("a@1", "b@1", "c@1"), numbers=numbers)
    table = dataclasses.replace(TABLE, show="first", rows=(TABLE.rows[0], family))
    assert markdown_cells(as_markdown(table))[2][1][6] == "2.0 \u00b1 0.5"
    lines = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert [line["shown"] for line in lines] == ["first block", "mean of 3 runs"]
    assert lines[1]["fd_std"] == "0.5"


def test_families_of_one_run_have_no_note_on_runs():
    one, two = (dataclasses.replace(TABLE.rows[1], models=models) for models in (("a@9",), ("b@9", "c@9")))
    assert "over runs" not in as_markdown(dataclasses.replace(TABLE, rows=(one,)))
    assert "over runs (d2o_f: 1, d2o_f: 2)" in as_markdown(dataclasses.replace(TABLE, rows=(one, two)))


def test_rows_of_several_datasets_and_emas_name_them():
    first, second, third, other = TABLE.rows
    second = dataclasses.replace(second, dataset="letters", ema=100_000.0, snapshot="d2o_f@30000-ema100000")
    table = dataclasses.replace(TABLE, dataset=None, rows=(first, second, third, other))
    head, _, rows = markdown_cells(as_markdown(table))
    assert head[:8] == ["run", "sampler", "dataset", "NFE", "images", "frozen", "snapshot", "EMA"]
    assert [rows[1][2], rows[1][7]] == ["letters", "100,000 images"]
    assert rows[3][:8] == ["SiD", "not run here", "digits", "1", "\\~400 M", PUBLISHED, PUBLISHED, PUBLISHED]
    assert as_latex(table).splitlines()[3].startswith("run & sampler & dataset & NFE &")
    assert "letters,1,40000,d2o_f@30000-ema100000," in as_csv(table)
