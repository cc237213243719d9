"""The progress of a run on a stream that is no terminal."""

from __future__ import annotations

import pytest

from onestep.training.log import Progress


@pytest.mark.parametrize("images_seen", [0, 144])
def test_a_run_shorter_than_one_interval_shows_its_end(capfd: pytest.CaptureFixture[str], images_seen: int) -> None:
    progress = Progress("digits", images=960, images_seen=images_seen)
    for seen in range(images_seen + 16, 961, 16):
        progress.show(seen, losses={"generator": 1.5})
    progress.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert "digits" in line and "960/960" in line and "1.5" in line


def test_other_ranks_show_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    progress = Progress("digits", images=32, shown=False)
    progress.show(32, losses={"generator": 1.5})
    progress.close()
    assert not capfd.readouterr().err
