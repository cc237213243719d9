"""Ranks: their seeds, and what joining demands of the environment."""

import os
import socket
import time

import pytest
import torch
from torch import distributed as dist

from onestep import distributed
from onestep.distributed import Place, Ranks
from preloaded import Program
from small_networks import FAMILIES, small_networks

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


WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_a_place_needs_all_variables():
    assert Place.of(WHOLE) == Place(rank=1, world=2, local_rank=1, address="127.0.0.1", port=29500)
    for name in WHOLE:
        assert Place.of({key: value for key, value in WHOLE.items() if key != name}) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"RANK": "2"},
        {"RANK": "-1"},
        {"RANK": "0"},
        {"RANK": "x"},
        {"RANK": ""},
        {"WORLD_SIZE": "0"},
        {"LOCAL_RANK": "-1"},
        {"MASTER_ADDR": ""},
        {"MASTER_PORT": "0"},
        {"MASTER_PORT": "99999"},
    ],
)
def test_variables_that_contradict_each_other_are_left_over(changed, caplog):
    assert Place.of(WHOLE | changed) is None
    with distributed.joined(WHOLE | changed) as ranks:
        assert (ranks.rank, ranks.world) == (0, 1)
    (message,) = caplog.messages
    assert "RANK" in message and "ignored" in message


def test_a_host_that_nobody_knows_is_one_line_soon(monkeypatch):
    monkeypatch.setattr(distributed, "_RESOLVING_SECONDS", 0.1)
    began = time.monotonic()
    elsewhere = WHOLE | {"MASTER_ADDR": "nowhere.invalid"}
    with pytest.raises(ValueError, match="nowhere.invalid") as error, distributed.joined(elsewhere):
        pass
    assert len(str(error.value).splitlines()) == 1 and time.monotonic() - began < 30


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        first = WHOLE | {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port}
        with pytest.raises(ValueError, match=f"127.0.0.1:{port}"), distributed.joined(first):
            pass


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_waits_leaves_when_told(rank):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    told = iter([False, False, True])
    began = time.monotonic()
    with (
        pytest.raises(distributed.Left),
        distributed.joined(WHOLE | {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}, stop=lambda: next(told)),
    ):
        pass
    assert time.monotonic() - began < 30


def test_a_batch_must_divide_over_the_ranks():
    with distributed.joined({}) as ranks:
        assert ranks.share_of(7) == 7
    three = distributed.Ranks(rank=0, world=3, device=ranks.device)
    with pytest.raises(ValueError, match="batch: got 64, .* 3$"):
        three.share_of(64)


def test_a_rank_that_fails_does_not_wait_for_the_others(tmp_path):
    program = tmp_path / "leaving.py"
    program.write_text(LEAVING)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    ranks = [
        Program(program, environment={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}, apart=True)
        for rank in range(2)
    ]
    # The group is taken apart by the one that leaves in order, and by it alone.
    assert [rank.communicate(timeout=120)[0].strip() for rank in ranks] == ["False", "True"]
    assert [rank.returncode for rank in ranks] == [0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore")  # of the backend, on devices that are not named
def test_nccl_takes_the_tensors_of_networks_in_either_layout():
    """In a group of one, which NCCL refuses as it refuses larger ones; the collectives are told of a second rank."""
    device = torch.device("cuda", 0)
    store = dist.HashStore()
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        ranks = Ranks(rank=0, world=2, device=device, cpu_group=dist.new_group(backend="gloo"))
        for layout in (torch.contiguous_format, torch.channels_last):
            networks = {role: network.to(device) for role, network in small_networks("adm").items()}
            networks["generator"].to(memory_format=layout)
            for role in FAMILIES:
                state = networks[role].state_dict()
                before = {name: value.clone() for name, value in state.items()}
                distributed.broadcast(state.values(), ranks=ranks)
                assert all(torch.equal(value, before[name]) for name, value in state.items())
        mean = distributed.average(torch.ones(5, device=device, dtype=torch.float64), ranks=ranks)
        assert mean.tolist() == [0.5] * 5  # one rank's sum, over two
        for sent in (torch.get_rng_state(), torch.arange(3), torch.rand(4)):
            received = [torch.empty_like(sent, device=device)]
            dist.all_gather(received, sent.to(device))
            assert torch.equal(received[0].cpu(), sent)
        distributed.wait(ranks=ranks)
        assert distributed.highest(2, ranks=ranks) == 2
    finally:
        dist.destroy_process_group()
