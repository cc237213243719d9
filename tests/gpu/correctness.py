"""Part 1: gradients and updates against the CPU and against plain float32, repeated, and NCCL's calls."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import distributed as dist

from gpu.measured_run import MeasuredRun, comparison
from gpu.runner import failure
from onestep import distributed
from onestep.data import to_pixels
from onestep.distributed import Ranks
from onestep.networks import build_denoiser
from onestep.sampling import generate, per_seed_noise
from onestep.sampling.one_step import OneStep

Found = Iterator[dict[str, float | str]]
REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"
_RESULTS = {"PASSED": "passed", "SKIPPED": "skipped", "FAILED": "failed", "ERROR": "failed"}
_RESULT = re.compile(r"(?:\[gw\d+\] \[ *\d+%\] |\S+::.* )(PASSED|FAILED|ERROR|SKIPPED)\b")


def tests(device: torch.device, *, paths: Sequence[str] = ()) -> Found:
    """Run the tests that are marked `gpu`, of files that have some: the others need packages that may be missing."""
    chosen = paths or [str(path) for path in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    workers = min(6, (os.cpu_count() or 1) // 2)
    several = workers > 1 and importlib.util.find_spec("xdist") is not None
    # A warning of a package in another version than the lock file's is no failure of ours.
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-vv", "-rfE", "-W", "default"]
    command += ["-n", str(workers)] if several else []
    environment = {**os.environ, **({"OMP_NUM_THREADS": "2"} if several else {})}
    counts, last, failures = dict.fromkeys(_RESULTS.values(), 0), "no output", 0
    yield dict(counts)
    with subprocess.Popen(
        [*command, *chosen],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line.strip() or last
            if line.startswith(("FAILED", "ERROR")) and failures < 20:  # of the summary at the end
                failures += 1
                yield {f"failure {failures}": line.strip()[:300]}
            elif found := _RESULT.match(line):
                counts[_RESULTS[found[1]]] += 1
                yield dict(counts)
    code = process.returncode
    if code not in (0, 1, 5) or (code == 1 and not counts["failed"]):
        yield {"outcome": last[:300]}


def gradients(device: torch.device, *, run: str, config: str = "config.yaml", rows: int = 2) -> Found:
    """Compare each phase on the device with the CPU, both in plain float32."""
    plain = MeasuredRun.build(config, run, options="ours", rows=rows, device=torch.device("cpu")).effects()
    here = MeasuredRun.build(config, run, options="ours", rows=rows, device=device).effects()
    yield dict(comparison(plain, here))


def repeated(device: torch.device, *, run: str, config: str = "config.yaml", rows: int = 2) -> Found:
    """Compute the same gradients twice: an error of 0 is deterministic."""
    one, other = (MeasuredRun.build(config, run, options="ours", rows=rows, device=device).effects() for _ in range(2))
    yield {name: value for name, value in comparison(one, other) if name.endswith(".error")}


def options(device: torch.device, *, run: str, sets: list[str], config: str = "config.yaml", rows: int = 2) -> Found:
    """Compare sets of options with plain float32 on the same device; one that fails is a finding of its own."""
    plain = MeasuredRun.build(config, run, options="ours", rows=rows, device=device).effects()
    for name in sets:
        try:
            found = MeasuredRun.build(config, run, options=name, rows=rows, device=device).effects()
            yield {f"{name}.{key}": value for key, value in comparison(plain, found)}
        except Exception as error:  # of the device or the compiler
            yield {f"{name}.outcome": failure(error)}


def collectives(device: torch.device, *, run: str, config: str = "config.yaml") -> Found:
    """Call every collective on the state of a run, in a group of one process."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, 1, is_master=True)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        cpu_group = dist.new_group(backend="gloo") if backend == "nccl" else None
        # A world of two on paper, because a world of one calls none.
        ranks = Ranks(rank=0, world=2, device=device, cpu_group=cpu_group)
        measured = MeasuredRun.build(config, run, options="ours", rows=2, device=device)
        tensors = [each for network in measured.training.networks.values() for each in network.state_dict().values()]
        before = [each.clone() for each in tensors]
        distributed.broadcast(tensors, ranks=ranks)
        yield {"broadcast_tensors": len(tensors)}
        yield {"broadcast_changed": sum(not torch.equal(*pair) for pair in zip(tensors, before, strict=True))}
        yield {"average": float(distributed.average(torch.ones(3, device=device), ranks=ranks).sum()) / 3}
        yield {"highest": distributed.highest(7, ranks=ranks)}
        distributed.wait(ranks=ranks)
        local = torch.get_rng_state()[:64].to(device)
        received = [torch.empty_like(local)]
        dist.all_gather(received, local)
        yield {"gathered_differs": int((received[0] != local).sum())}
    finally:
        dist.destroy_process_group()


def precision_of_samples(device: torch.device, *, network: dict[str, object], images: int = 64) -> Found:
    """Compare images in TF32 and in float32, and whether the process-wide setting reaches `generate`."""
    torch.manual_seed(0)
    denoiser = build_denoiser(network).eval().to(device)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    shape = (int(str(network["img_channels"])), *[int(str(network["img_resolution"]))] * 2)
    noise = 80.0 * per_seed_noise(range(images), shape).to(device)
    forward, generated = [], []
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
        with torch.no_grad():
            made = denoiser(noise, torch.full((images,), 80.0, device=device), None)
        forward.append(to_pixels(made))
        generated.append(
            torch.cat([each.pixels for each in generate(denoiser, OneStep(), seeds=range(images), batch=64)])
        )
    yield {"tf32_bytes_differ": _share(*forward)}
    yield {"generate_bytes_differ": _share(*generated)}


def _share(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one != other).double().mean())
