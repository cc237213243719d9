"""Runs on the page that still train."""

import pytest
from PIL import Image

from onestep.files import write_json
from onestep.report.watched import watched_runs
from onestep.results import Results


@pytest.mark.parametrize(("finished", "is_shown"), [(None, True), (64, True), (128, False)])
def test_a_run_is_shown_until_its_newest_grid_is_that_of_a_finished_run(tmp_path, finished, is_shown):
    layout = Results(tmp_path)
    for count in (64, 128):
        grid = layout.watched("a", count)
        grid.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(grid)
    write_json(layout.watched("a", 128, ".fd.json"), {"metric": "fd", "values": {"frechet": 2.0}})
    if finished is not None:
        write_json(layout.summary("a"), {"images_seen": finished})
    found = list(watched_runs(layout, ["a", "b"]))
    assert [(each.name, each.images, each.width) for each in found] == [("a", 128, 8)] * is_shown
    assert all(each.number == "fd 2 at 128 images" for each in found)
