"""The processes of a training, on one node or on several: the same losses."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slurm


def test_two_nodes_of_four_processes_train_as_one_of_eight(place, tmp_path):
    one, two = place, place.copy(tmp_path / "two")
    for each, nodes in ((one, 1), (two, 2)):
        launch = {"nodes": nodes, "processes_per_node": 8 // nodes}
        each.configure(launch=launch, batch=32, images=160, snapshot_every=160)
        each.launch().ends(0, seconds=300)
    assert [job.nodes for each in (one, two) for job in each.jobs] == ["n1", "n[1-2]"]
    assert one.summary["world_size"] == two.summary["world_size"] == 8
    losses = [[record["losses"]["generator"] for record in each.result.records] for each in (one, two)]
    assert len(losses[0]) == 5
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
