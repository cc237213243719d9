"""Tables as files, quoted as they are written."""

# ruff: noqa: E501

import csv
import io
import json
import re

import pytest
from results_tree import row

from onestep.report.formats import as_csv, as_latex, as_markdown, latex, write_table
from onestep.report.table import Table

TABLE = Table(
    name="small",
    title="Ours & theirs_1 | 100 %",
    dataset="digits",
    seeds=("0-1999", "2000-3999"),
    columns={"fd": "fd.frechet", "recall": "pr.recall"},
    directions={"fd": "lower", "recall": "higher"},
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
        ),
        row(
            "d2o_f",
            "one_step",
            fd=(2.25, 0.125, 2, True),
            recall=(0.5, 0.0625, 2, False),
            frozen_share=0.79,
            trained_with_other_code=True,
        ),
        row("d2o|<b>", "one_step", fd=None, recall=None, published={"fd": 1.54}),
    ),
)

MARKDOWN = """\
### Ours &amp; theirs_1 \\| 100 %

| run | sampler | evaluations | images | frozen | FD \u2193 | FD published | difference | recall \u2191 |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| teacher | heun | 35 | not trained here | not trained here | 3.10 \u00b1 0.04 | 3 | +0.10 | **0.7000** \
(1 of 2 blocks) |
| d2o_f \u2020 | one_step | 1 | 40,000 | 79 % | **2.25 \u00b1 0.12** | not published | not published | 0.50 \u00b1 0.06 |
| d2o\\|&lt;b> | one_step | 1 | 40,000 | 0 % | not measured | 1.54 | not measured | not measured |

Mean \u00b1 standard deviation over 2 blocks of seeds (0-1999, 2000-3999); snapshot of each run: last.  
Bold: the best of its column (\u2193 lower is better, \u2191 higher is better).  
\u2020 Trained with other code: the training code has changed since this snapshot was made.  
"""

CSV = """\
run,sampler,label,nfe,images_seen,snapshot,snapshot_policy,frozen_share,fd,fd_std,fd_blocks,fd_best,fd_published,\
fd_difference,recall,recall_std,recall_blocks,recall_best,trained_with_other_code
teacher,heun,teacher,35,not trained here,teacher@40000,last,not trained here,3.1041,0.0432,2,false,3.0,\
0.10409999999999986,0.7,one block,1,true,false
d2o_f,one_step,d2o_f,1,40000,d2o_f@40000,last,0.79,2.25,0.125,2,true,not published,not published,\
0.5,0.0625,2,false,true
d2o|<b>,one_step,d2o|<b>,1,40000,d2o|<b>@40000,last,0.0,not measured,not measured,0,false,1.54,not measured,\
not measured,not measured,0,false,false
"""

LATEX = r"""% Ours & theirs_1 | 100 %
\begin{tabular}{llrrrrrrr}
\toprule
run & sampler & evaluations & images & frozen & FD $\downarrow$ & FD published & difference & recall $\uparrow$ \\
\midrule
teacher & heun & 35 & not trained here & not trained here & $3.10 \pm 0.04$ & 3 & +0.10 & $\mathbf{0.7000}$ (1 of 2 blocks) \\
d2o\_f$^\dagger$ & one\_step & 1 & 40,000 & 79 \% & $\mathbf{2.25 \pm 0.12}$ & not published & not published & $0.50 \pm 0.06$ \\
d2o\textbar{}\textless{}b\textgreater{} & one\_step & 1 & 40,000 & 0 \% & not measured & 1.54 & not measured & not measured \\
\bottomrule
\multicolumn{9}{l}{\footnotesize Mean $\pm$ standard deviation over 2 blocks of seeds (0-1999, 2000-3999); snapshot of each run: last.} \\
\multicolumn{9}{l}{\footnotesize Bold: the best of its column ($\downarrow$ lower is better, $\uparrow$ higher is better).} \\
\multicolumn{9}{l}{\footnotesize $^\dagger$ Trained with other code: the training code has changed since this snapshot was made.} \\
\end{tabular}
"""


def test_markdown_is_exactly_this():
    assert as_markdown(TABLE) == MARKDOWN


def test_csv_is_exactly_this():
    assert as_csv(TABLE) == CSV


def test_latex_is_exactly_this():
    assert as_latex(TABLE) == LATEX


def test_no_cell_is_blank():
    for line in csv.reader(io.StringIO(as_csv(TABLE))):
        assert all(line)
    for line in as_markdown(TABLE).splitlines():
        if line.startswith("|"):
            assert all(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])


def test_every_latex_row_fills_the_columns_and_every_brace_closes():
    text = as_latex(TABLE)
    bare = re.sub(r"\\[{}$&#_%]", "", text.partition("\n")[2])
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    body = bare.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert [line.count("&") for line in body] == [8, 8, 8]
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


def test_all_four_files_are_written(tmp_path):
    write_table(tmp_path, table=TABLE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.csv", "small.json", "small.md", "small.tex"]
    assert (tmp_path / "small.md").read_text(encoding="utf-8") == MARKDOWN
    rows = json.loads((tmp_path / "small.json").read_text())
    assert rows[2]["metrics"] == {"fd": None, "recall": None}
    assert rows[2]["published"] == {"fd": 1.54}
