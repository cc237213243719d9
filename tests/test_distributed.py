"""Ranks: their seeds, and what joining demands of the environment."""

import os
import socket
import subprocess
import sys

import pytest

from onestep import distributed

LEAVING = """
import os
from onestep import distributed
try:
    with distributed.joined() as ranks:
        distributed.wait(ranks=ranks)
        assert os.environ["RANK"] == "0", "this rank fails"
except AssertionError:
    pass
print(distributed.dist.is_initialized())
"""


@pytest.mark.golden
def test_rank_seeds_equal_the_reference(golden):
    rows = golden.json("data_order.json")["rank_seeds"]
    assert rows
    for row in rows:
        assert distributed.rank_seed(row["seed"], world=row["world"], rank=row["rank"]) == row["torch_manual_seed"]


def test_half_an_environment_is_refused():
    with pytest.raises(ValueError, match="environment: got RANK only"), distributed.joined({"RANK": "0"}):
        pass


def test_a_batch_must_divide_over_the_ranks():
    with distributed.joined({}) as ranks:
        assert ranks.share_of(7) == 7
    three = distributed.Ranks(rank=0, world=3, device=ranks.device)
    with pytest.raises(ValueError, match="batch: got 64, .* 3$"):
        three.share_of(64)


def test_a_rank_that_fails_does_not_wait_for_the_others():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVING],
            env={**os.environ, **meeting, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    # The group is taken apart by the one that leaves in order, and by it alone.
    assert [rank.communicate(timeout=120)[0].strip() for rank in ranks] == ["False", "True"]
    assert [rank.returncode for rank in ranks] == [0, 0]
