"""The processes of a training, on one node or on several: the same losses."""

from __future__ import annotations

import pytest
from launches import Site

pytestmark = pytest.mark.slurm


def test_two_nodes_of_four_processes_train_as_one_of_eight(slurm, tmp_path):
    with Site.prepared(tmp_path, slurm=slurm, batch=32, images=160, snapshot_every=160) as site:
        one = site.launch("one", nodes=1, processes_per_node=8)
        assert one.ends() == 0, one.said
        two = site.launch("two", nodes=2, processes_per_node=4)
        assert two.ends() == 0, two.said
    assert [job.nodes for launch in (one, two) for job in launch.jobs()] == ["n1", "n[1-2]"]
    assert one.history["world_size"] == two.history["world_size"] == 8
    losses = [[record["losses"]["generator"] for record in launch.result.records] for launch in (one, two)]
    assert len(losses[0]) == 5
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
