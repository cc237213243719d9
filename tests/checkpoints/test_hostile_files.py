"""Files made to do harm are refused: nothing runs, little memory is taken, one error names the file."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import edm_writer
import hostile_files
import numpy as np
import pytest

MARKER = Path(tempfile.gettempdir()) / f"onestep-hostile-{os.getpid()}"
EXECUTING = hostile_files.executing(MARKER)
REFUSED = hostile_files.ill_formed() | hostile_files.deceiving_tensors() | hostile_files.bombs()
HONEST = "an honest network of 48 MB"
# Enough for the file and one copy of its weights, not for two; the address space counts, not only what is used.
MEGABYTES = 120


@pytest.fixture
def marker() -> Iterator[Path]:
    """The file that hostile files try to create; absent at the start."""
    MARKER.unlink(missing_ok=True)
    yield MARKER
    MARKER.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What reading each file led to, in one process that may take only MEGABYTES."""
    folder = tmp_path_factory.mktemp("hostile")
    honest = edm_writer.network({"model.weight": np.ones(12 * 2**20, np.float32)}, {"img_resolution": 8})
    contents = {name: content for name, (content, _) in EXECUTING.items()} | REFUSED
    contents[HONEST] = edm_writer.dump({"ema": honest})
    for number, content in enumerate(contents.values()):
        (folder / f"{number:03d}.pkl").write_bytes(content)
    program = Path(__file__).with_name("guarded_read.py")
    command = [sys.executable, program, folder, str(MEGABYTES)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    return {name: found[f"{number:03d}.pkl"] for number, name in enumerate(contents)} | {
        "created": {"marker": MARKER.exists()}
    }


@pytest.mark.parametrize("name", EXECUTING)
def test_an_ordinary_unpickler_would_run_it(name: str, marker: Path) -> None:
    with contextlib.suppress(Exception):
        edm_writer.unpickle(EXECUTING[name][0])
    assert marker.exists()


@pytest.mark.parametrize("name", EXECUTING)
def test_code_in_a_file_does_not_run(name: str, outcomes: dict[str, dict[str, object]]) -> None:
    assert outcomes["created"] == {"marker": False}
    assert outcomes[name]["kind"] == "ValueError"
    message = str(outcomes[name]["message"])
    assert "names the global" in message
    assert f"{EXECUTING[name][1]}'" in message
    assert ".pkl: " in message


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_asks_for_too_much_is_refused(name: str, outcomes: dict[str, dict[str, object]]) -> None:
    assert outcomes[name]["kind"] == "ValueError"
    message = str(outcomes[name]["message"])
    assert ".pkl: " in message
    assert len(message) < 700
    assert "\n" not in message
    assert float(str(outcomes[name]["seconds"])) < 20


def test_an_honest_network_is_read_in_the_same_memory(outcomes: dict[str, dict[str, object]]) -> None:
    assert outcomes[HONEST]["message"] == "it was read"
