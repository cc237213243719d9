"""Each job has its own GPU; this machine has none, so torch is made to count some."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist

from onestep import distributed, gpus
from onestep.launch import local


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that gives this machine a number of GPUs."""
    monkeypatch.setattr(gpus, "DRIVERS", (tmp_path,))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for variable in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "RANK"):
        monkeypatch.delenv(variable, raising=False)

    def having(count, **environment):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return having


def _seen():
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_each_job_gets_a_free_gpu_and_one_that_finds_none_waits(machine):
    machine(2)
    with gpus.own():
        assert _seen() == "0"
        del os.environ["CUDA_VISIBLE_DEVICES"]  # another process does not see what this one has set
        with gpus.own():
            assert _seen() == "1"
            del os.environ["CUDA_VISIBLE_DEVICES"]
            with gpus.own(stop=lambda: True) as held:
                assert not held and _seen() is None
            os.environ["CUDA_VISIBLE_DEVICES"] = "1"
        with gpus.own(2, stop=lambda: True) as held:
            assert not held
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    assert _seen() is None
    with gpus.own(2) as held:
        assert held and _seen() == "0,1"


def test_only_the_visible_gpus_count_by_their_names(machine):
    machine(2, CUDA_VISIBLE_DEVICES="5,GPU-7/a")
    with gpus.own(2):
        assert _seen() == "5,GPU-7/a"
    assert _seen() == "5,GPU-7/a"


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "RANK"])
def test_a_job_of_slurm_and_a_rank_have_theirs(machine, variable):
    machine(2, **{variable: "1"})
    with gpus.own() as held:
        assert held and _seen() is None


def test_on_a_cpu_nothing_happens(machine, monkeypatch):
    machine(0)
    with gpus.own(8) as held:
        assert held and _seen() is None
    monkeypatch.setattr(gpus, "DRIVERS", ())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("counted"))
    assert gpus.visible() == []


def test_more_processes_than_gpus_are_one_line_before_any_starts(machine, tmp_path):
    machine(1)
    with pytest.raises(ValueError, match="processes: got 8 for 1 GPU, expected .* Fix: ") as error:
        local.run_locally(["train"], processes=8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("count", "changed"),
    [(1, {"LOCAL_WORLD_SIZE": "2"}), (2, {"LOCAL_RANK": "2", "RANK": "2", "WORLD_SIZE": "3"})],
)
def test_a_rank_without_a_gpu_of_its_own_is_refused_whoever_started_it(machine, monkeypatch, count, changed):
    machine(count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rank = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    with pytest.raises(ValueError, match=f"processes: got .* for {count} GPU"), distributed.joined(rank | changed):
        pass


def test_a_rank_with_a_gpu_names_it_to_the_group_and_later_collectives_may_take_longer_than_the_start(monkeypatch):
    given = {}
    for name, value in (("is_available", True), ("device_count", 2), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **more: given.update(more, backend=backend))
    for name in ("new_group", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda **_: None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def come():
        store = dist.TCPStore(
            "127.0.0.1", port, 2, is_master=False, timeout=timedelta(minutes=1), wait_for_workers=False
        )
        store.add("come", 1)

    other = threading.Thread(target=come)
    other.start()
    rank = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with distributed.joined(rank | {"LOCAL_WORLD_SIZE": "2"}) as ranks:
        assert ranks.device == torch.device("cuda", 0)
    other.join()
    assert given["backend"] == "nccl" and given["device_id"] == ranks.device
    assert given["timeout"] > timedelta(minutes=10)
