"""Ranks: their seeds, and what joining demands of the environment."""

import pytest

from onestep import distributed


@pytest.mark.golden
def test_rank_seeds_equal_the_reference(golden):
    rows = golden.json("data_order.json")["rank_seeds"]
    assert rows
    for row in rows:
        assert distributed.rank_seed(row["seed"], world=row["world"], rank=row["rank"]) == row["torch_manual_seed"]


def test_half_an_environment_is_refused():
    with pytest.raises(ValueError, match="RANK alone"), distributed.joined({"RANK": "0"}):
        pass


def test_a_batch_must_divide_over_the_ranks():
    with distributed.joined({}) as ranks:
        assert ranks.share_of(7) == 7
    three = distributed.Ranks(rank=0, world=3, device=ranks.device)
    with pytest.raises(ValueError, match="batch 64 does not divide over 3 processes"):
        three.share_of(64)
