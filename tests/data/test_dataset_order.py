"""The endless shuffle: the reference's order, in any portions, resumable."""

from __future__ import annotations

import numpy as np
import pytest

from onestep.data._batches import InfiniteOrder
from onestep.files import canonical_json


@pytest.mark.golden
def test_order_is_the_references(golden):
    cases = golden.json("data_order.json")["infinite_sampler"]
    assert cases
    for case in cases:
        order = InfiniteOrder(
            size=case["dataset_len"], seed=case["seed"], world=case["num_replicas"], rank=case["rank"]
        )
        assert order.take(len(case["first"])).tolist() == case["first"]


def test_portions_do_not_matter():
    whole = InfiniteOrder(size=17, seed=3, world=2, rank=1).take(60)
    order = InfiniteOrder(size=17, seed=3, world=2, rank=1)
    assert np.concatenate([order.take(n) for n in (1, 0, 13, 40, 6)]).tolist() == whole.tolist()


def test_the_ranks_together_read_what_one_process_reads():
    alone = InfiniteOrder(size=50, seed=5).take(90)
    ranks = [InfiniteOrder(size=50, seed=5, world=3, rank=rank).take(30) for rank in range(3)]
    assert np.stack(ranks, axis=1).ravel().tolist() == alone.tolist()


def test_the_first_epoch_reads_each_picture_about_once_and_the_second_in_another_order():
    order = InfiniteOrder(size=200, seed=0)
    epochs = order.take(200), order.take(200)
    assert all(len(set(epoch.tolist())) > 120 for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_a_window_below_two_pictures_repeats_the_first_shuffle():
    first, second = np.split(InfiniteOrder(size=9, seed=1, window=0.1).take(18), 2)
    assert sorted(first) == list(range(9))
    assert first.tolist() == second.tolist()


def test_a_resumed_order_goes_on_as_the_uninterrupted_one():
    settings = {"size": 31, "seed": 8, "world": 2, "rank": 1}
    order = InfiniteOrder(**settings)
    order.take(45)
    state = order.state()
    expected = order.take(100)
    resumed = InfiniteOrder(**settings | {"seed": 99})
    resumed.restore(state)
    assert resumed.take(100).tolist() == expected.tolist()


def test_a_state_is_a_copy_and_survives_json():
    order = InfiniteOrder(size=12, seed=2)
    state = order.state()
    lists = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in state.items()}
    before = canonical_json(lists)
    expected = order.take(30).tolist()
    assert canonical_json({key: np.asarray(value).tolist() for key, value in state.items()}) == before
    order.restore(lists)
    assert order.take(30).tolist() == expected


def test_a_state_resumes_with_another_number_of_processes():
    order = InfiniteOrder(size=40, seed=4, world=2, rank=0)
    order.take(15)
    ranks = [InfiniteOrder(size=40, seed=4, world=4, rank=rank) for rank in range(4)]
    for rank in ranks:
        rank.restore(order.state())
    together = sorted(np.concatenate([rank.take(10) for rank in ranks]).tolist())
    assert together == sorted(InfiniteOrder(size=40, seed=4).take(70)[30:].tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "found 0"),
        ({"world": 2, "rank": 2}, "rank 2 of world 2"),
        ({"window": 1.5}, r"\[0, 1\], found 1.5"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InfiniteOrder(**{"size": 10, "seed": 0} | settings)


def test_a_state_of_another_dataset_is_refused():
    with pytest.raises(ValueError, match="10 .*11"):
        InfiniteOrder(size=11, seed=0).restore(InfiniteOrder(size=10, seed=0).state())
