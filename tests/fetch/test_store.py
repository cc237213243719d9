"""The folder inputs/ and its lock file: trust on first use, one fetch at a time, nothing lost to a kill."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import misbehaving_server as does
import pytest
import yaml
from misbehaving_server import CONTENT, OTHER, SHA256

from onestep.fetch.download import Patience, Verified
from onestep.fetch.store import InputsLock, Store, fetch_input
from onestep.files import canonical_json

TARGET = Path("results/inputs/weights/x.bin")
KEPT = Path("inputs/weights/x.bin")
LOCK = Path("inputs.lock.yaml")
QUICK = Patience(attempts=3, pause=0.01, longest=0.05, silence=0.3)


def store(**options):
    return Store(patience=QUICK, **options)


def command(address, **known):
    """Return the command line of the rule."""
    source = canonical_json({"url": address, **known})
    return [sys.executable, "-m", "onestep", "fetch", "--source", source, "--output", str(TARGET)]


def fetch(server, *, on=None, **known):
    fetch_input({"url": server.address("/x.bin"), **known}, target=TARGET, store=on or store())


def test_the_first_download_is_trusted_recorded_and_enforced(server, work):
    server.put("/x.bin", CONTENT)
    fetch(server)
    assert TARGET.read_bytes() == KEPT.read_bytes() == CONTENT
    assert TARGET.with_name("x.bin.sha256").read_text() == f"{SHA256}  x.bin\n"
    address = server.address("/x.bin")
    assert yaml.safe_load(LOCK.read_text()) == {address: {"sha256": SHA256, "size": len(CONTENT)}}
    KEPT.unlink()
    server.put("/x.bin", OTHER)
    expected = rf"^{address}: .*sha256 \w+, expected {SHA256} \(inputs.lock.yaml\)\n"
    with pytest.raises(ValueError, match=expected) as error:
        fetch(server)
    assert f"delete the entry {address} of inputs.lock.yaml" in str(error.value)
    assert not KEPT.exists() and TARGET.read_bytes() == CONTENT
    LOCK.unlink()
    fetch(server)
    assert TARGET.read_bytes() == OTHER


def test_a_digest_of_the_config_needs_no_record(server, work):
    server.put("/x.bin", CONTENT)
    fetch(server, sha256=SHA256, size=len(CONTENT))
    assert TARGET.exists() and not LOCK.exists()


def test_what_is_kept_is_verified_and_costs_no_second_download(server, work):
    served = server.put("/x.bin", CONTENT)
    fetch(server)
    TARGET.unlink()
    fetch(server, on=store(offline=True))
    assert TARGET.read_bytes() == CONTENT and len(served.ranges) == 1
    KEPT.write_bytes(OTHER)
    with pytest.raises(ValueError, match=rf"^{KEPT}: .*sha256 \w+, expected {SHA256} .*onestep fetch --only weights"):
        fetch(server)


def test_mirrors_come_first_and_need_not_have_everything(server, work):
    served = server.put("/x.bin", CONTENT)
    (work / "mirror").mkdir()
    mirrors = {server.address("/"): (work / "mirror").as_uri() + "/"}
    fetch(server, on=store(mirrors=mirrors))
    assert len(served.ranges) == 1
    KEPT.unlink()
    (work / "mirror/x.bin").write_bytes(CONTENT)
    fetch(server, on=store(mirrors=mirrors))
    assert len(served.ranges) == 1 and KEPT.read_bytes() == CONTENT


def test_offline_names_what_is_missing_and_the_command(server, work):
    server.put("/x.bin", CONTENT)
    with pytest.raises(ValueError, match=f"{KEPT}.*`onestep fetch --only weights`"):
        fetch(server, on=store(offline=True))


def test_an_input_by_hand_is_requested_and_then_used(work):
    target = Path("results/inputs/generator/cifar_uncond_d2o_f.pkl")
    source = {"published": "d2o-cifar-uncond-f"}
    with pytest.raises(ValueError) as error:
        fetch_input(source, target=target, store=store())
    assert "https://drive.google.com/drive/folders/" in str(error.value)
    assert "inputs.generator: {file: PATH}" in str(error.value)
    Path("inputs").mkdir(exist_ok=True)
    Path("inputs/cifar_uncond_d2o_f.pkl").write_bytes(CONTENT)
    fetch_input(source, target=target, store=store())
    assert target.read_bytes() == CONTENT
    assert yaml.safe_load(LOCK.read_text())["d2o-cifar-uncond-f"]["sha256"] == SHA256


def test_a_folder_by_hand_is_described_and_enforced(work):
    target = Path("results/inputs/faces/ffhq.folder")
    pictures = work / "inputs/ffhq/00000"
    pictures.mkdir(parents=True)
    (pictures / "1.png").write_bytes(b"12345")
    fetch_input({"published": "ffhq"}, target=target, store=store())
    described = json.loads(target.read_text())
    assert (described["folder"], described["files"], described["bytes"]) == (str(work / "inputs/ffhq"), 1, 5)
    (pictures / "2.png").write_bytes(b"1")
    with pytest.raises(ValueError, match="^inputs/ffhq: .*sha256 .*the entry ffhq of inputs.lock.yaml"):
        fetch_input({"published": "ffhq"}, target=target, store=store())


def started(server, *, arguments=None):
    """Start the rule's command and wait until it has written something."""
    process = subprocess.Popen(arguments or command(server.address("/x.bin")), stderr=subprocess.PIPE, text=True)
    part = Path("inputs/.fetch/weights/x.bin.part")
    for _ in range(1000):
        if part.exists() and part.stat().st_size:
            return process, part
        time.sleep(0.01)
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("known", [{}, {"sha256": SHA256}], ids=["trusted", "known"])
def test_a_killed_fetch_leaves_no_file_and_the_next_continues(server, work, known):
    served = server.put("/x.bin", CONTENT, does.slowly(20_000, 0.05))
    process, part = started(server, arguments=command(server.address("/x.bin"), **known))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    size = part.stat().st_size
    assert 0 < size < len(CONTENT) and not TARGET.exists() and not KEPT.exists() and not LOCK.exists()
    subprocess.run(command(server.address("/x.bin"), **known), check=True, capture_output=True)
    assert TARGET.read_bytes() == CONTENT and served.ranges == [None, f"bytes={size}-"]
    assert not part.exists()


def test_two_fetches_at_once_do_it_once(server, work):
    served = server.put("/x.bin", CONTENT, does.slowly(15_000, 0.1))
    first, _ = started(server)
    second = subprocess.run(command(server.address("/x.bin")), capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "weights: waiting for another process" in second.stderr
    assert first.wait() == 0
    first.communicate()
    assert TARGET.read_bytes() == CONTENT and served.ranges == [None]


def test_many_records_at_once_are_all_kept(work):
    lock = InputsLock(path=LOCK, lock=work / "turn")
    names = [f"input{index}" for index in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: lock.record(name, Verified(sha256="0" * 64, size=1), place=name), names))
    assert sorted(yaml.safe_load(LOCK.read_text())) == sorted(names)


@pytest.mark.parametrize("text", ["a: [", "- 1", "a: 3", "a: {sha256: x}"])
def test_a_damaged_lock_file_is_named(server, work, text):
    server.put("/x.bin", CONTENT)
    LOCK.write_text(text)
    with pytest.raises(ValueError, match=r"^inputs.lock.yaml: .*\{sha256, size\}"):
        fetch(server)


def test_a_full_disk_is_a_clear_error_and_the_next_fetch_continues(server, work):
    """RLIMIT_FSIZE imitates a full disk: the system refuses further bytes of the file."""
    served = server.put("/x.bin", CONTENT)
    limit = 100_000
    full = subprocess.run(
        command(server.address("/x.bin")),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert full.returncode == 1
    assert "x.bin.part: File too large after 100,000 bytes" in full.stderr
    assert "Traceback" not in full.stderr and not TARGET.exists() and not KEPT.exists() and not LOCK.exists()
    fetch(server)
    assert TARGET.read_bytes() == CONTENT and served.ranges == [None, "bytes=100000-"]


@pytest.fixture
def small_disk(work):
    """A disk of 128 KiB at inputs/, where mounting is permitted."""
    folder = work / "inputs"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder]).returncode:
        pytest.skip("mounting a small disk is not permitted here; RLIMIT_FSIZE imitates it in the test above")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_small_disk_is_found_too_small_before_and_during(server, work, small_disk):
    served = server.put("/x.bin", CONTENT)
    with pytest.raises(ValueError, match=r"^inputs.*: .*[\d,]+ bytes free, expected 300,000 "):
        fetch(server)
    served.behaviours.append(does.chunked())
    with pytest.raises(ValueError, match=r"x.bin.part: No space left on device after [\d,]+ bytes"):
        fetch(server)
    assert not TARGET.exists() and not KEPT.exists() and not LOCK.exists()
