"""Data that a thread prepares is that of the direct way, bit for bit; its errors, its end and its copies."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from onestep.bench.option_sets import option_set
from onestep.bench.random_run import random_training, shape_of
from onestep.config import parse_experiment
from onestep.config.run import run_of
from onestep.distributed import Ranks
from onestep.training.ahead import data_of_steps
from onestep.training.log import Settled
from onestep.training.loop import take_step, wrapped_networks
from onestep.training.resume import Resume
from onestep.training.run import assemble
from onestep.training.step import set_training_mode
from onestep.training.streams import CountedRows
from tiny import tiny_config

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))


@pytest.fixture
def training(bench):
    """Return what assembles the tiny D2O run, with its regularizer on every second step."""
    document = yaml.safe_load(bench.document("digits_d2o").read_text())
    document["objective"] |= {
        "r1_every": 2,
        "augment": {"name": "diffaugment", "color": True, "translation": True, "cutout": False},
    }
    return lambda: assemble(run_of(document), files=bench.files(document), ranks=ALONE, micro_batch=20)


def weights(training):
    return {
        f"{role}.{name}": value for role, each in training.networks.items() for name, value in each.state_dict().items()
    }


def run(training, *, ahead, begin=0, end=4):
    set_training_mode(training.networks, phases=training.phases)
    with data_of_steps(training, ranks=ALONE, ahead=ahead) as data:
        for step in range(begin, end):
            take_step(training, images_seen=step * training.run.batch, ranks=ALONE, data=data)


def test_random_numbers_are_those_of_the_generator_of_each_row():
    rows = CountedRows(seed=3, phase="a", rows=range(4, 6), device=ALONE.device)
    found = [rows.normal(2, 3), rows.uniform(), rows.normal(1)]
    for place, row in enumerate((4, 5)):
        key = np.array([3, 0xE8B7BE43], dtype=np.uint64)  # the CRC-32 of "a"
        stream = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, row, 0], dtype=np.uint64)))
        assert np.array_equal(found[0][place], stream.standard_normal((2, 3), dtype=np.float32))
        assert found[1][place] == stream.random(dtype=np.float32)
        assert np.array_equal(found[2][place], stream.standard_normal(1, dtype=np.float32))


def test_a_thread_changes_no_bit_and_leaves_the_order_at_the_last_step(training):
    direct, threaded = training(), training()
    run(direct, ahead=False)
    run(threaded, ahead=True)
    wanted = weights(direct)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(threaded).items())
    one, other = direct.order.state(), threaded.order.state()
    assert all(np.array_equal(value, other[name]) for name, value in one.items())


def test_a_run_that_goes_on_with_a_thread_has_the_bits_of_one_without(training, tmp_path):
    straight, cut, resumed = training(), training(), training()
    for each in (straight, cut):
        Resume(each, folder=tmp_path / "none", ranks=ALONE, code="").restore()
    run(straight, ahead=False)
    run(cut, ahead=True, end=2)
    resume = Resume(cut, folder=tmp_path, ranks=ALONE, code="")
    resume.save(images_seen=2 * cut.run.batch, log=Settled(0, ""), window=resume.window)
    assert Resume(resumed, folder=tmp_path, ranks=ALONE, code="").restore() == 2 * cut.run.batch
    run(resumed, ahead=True, begin=2)
    wanted = weights(straight)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(resumed).items())


def test_draws_that_nobody_foresaw_are_those_of_the_streams():
    def rows(**ahead):
        return CountedRows(seed=3, phase="a", rows=range(4), device=ALONE.device, **ahead)

    plain = rows()
    wanted = [plain.normal(2), plain.uniform(5), plain.normal(2)]
    first = rows()
    other = [(draw, torch.full((4, *draw.shape), 7.0)) for draw in (*plain.draws[:1], *plain.draws[:1])]
    foreseen = rows(ahead=[(plain.draws[0], first.normal(2)), *other[1:]])
    found = [foreseen.normal(2), foreseen.uniform(5), foreseen.normal(2)]
    assert all(torch.equal(one, another) for one, another in zip(wanted, found, strict=True))


def test_an_error_of_the_thread_is_raised_as_it_is_and_the_thread_ends(training):
    class Broken:
        def __getitem__(self, indices):
            raise OSError("no such page")

    built = replace(training(), conditions=Broken())
    before = threading.active_count()
    with pytest.raises(OSError, match="no such page"):
        run(built, ahead=True)
    assert threading.active_count() == before


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a device that is not the CPU, and what it copies without waiting."""

    def __init__(self):
        super().__init__()
        self.waiting, self.copies = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name().removeprefix("aten::")
        tensors = [each for each in (*args, result) if isinstance(each, torch.Tensor)]
        crosses = len({each.device.type for each in tensors}) > 1 and name.startswith(("_to_copy", "copy_"))
        non_blocking = (kwargs or {}).get("non_blocking", len(args) > 2 and args[2])
        if crosses and not (non_blocking and args[0].data_ptr() in _pinned):
            self.waiting.append(name)
        elif crosses:
            self.copies += 1
        if name.startswith(("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")) and tensors[0].is_meta:
            self.waiting.append(name)
        return result


_pinned: set[int] = set()


@pytest.mark.parametrize("name", ["digits_d2o", "digits_edm"])
def test_a_step_neither_waits_for_the_device_nor_copies_from_memory_that_is_not_pinned(monkeypatch, name):
    """On the device `meta`, whose copies and reads are calls as those of CUDA are; torch cannot pin without CUDA."""
    device = torch.device("meta")
    ranks = Ranks(rank=0, world=1, device=device)
    experiment = parse_experiment(tiny_config())
    shape = shape_of(experiment, name, given={})
    training = random_training(experiment, name, options=option_set("ours"), shape=shape, batch=4, ranks=ranks)
    wrapped = wrapped_networks(training)
    set_training_mode(training.networks, phases=training.phases)
    empty, kept = torch.empty, []

    def pinned(tensor):
        kept.append(tensor)  # so that no other tensor takes its memory
        _pinned.add(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(
        torch, "empty", lambda *a, pin_memory=False, **k: pinned(empty(*a, **k)) if pin_memory else empty(*a, **k)
    )
    monkeypatch.setattr("onestep.training.streams.PINNED", ("cuda", "meta"))
    with data_of_steps(training, ranks=ranks, ahead=True) as data:
        for step in range(3):
            waits = Waits()
            with waits:
                take_step(training, images_seen=4 * step, ranks=ranks, wrapped=wrapped, data=data)
            if step:
                assert waits.waiting == []
    assert waits.copies == 3  # the images, and two draws of random numbers
