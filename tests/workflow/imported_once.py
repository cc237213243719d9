"""Run a command whose jobs call `onestep`; torch and the package are imported once for all of them.

Usage: python imported_once.py COMMAND. First on the PATH of COMMAND is an `onestep` that asks this process for a fork,
which is what runs the verb: in the folder, with the environment, and with stdin, stdout and stderr of the caller.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import socket
import sys
import tempfile
from pathlib import Path

_CLIENT = """#!{python} -S
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    call = json.dumps({{"words": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}).encode()
    socket.send_fds(server, [len(call).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(call)
    code = server.recv(1)
sys.exit(code[0] if code else 1)
"""


def import_all() -> None:
    """Import the package, and what torch imports at the first step of an optimizer."""
    import onestep

    for name in ("torch", "torch._dynamo"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(onestep.__path__, "onestep."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def answer(caller: socket.socket) -> None:
    """Run the verb that a caller asks for, and send it the exit code."""
    size, descriptors, *_ = socket.recv_fds(caller, 8, 3)
    call = json.loads(caller.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    child = os.fork()
    if child == 0:
        caller.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os._exit(run(**call))
    _, status = os.waitpid(child, 0)
    caller.sendall(bytes([os.waitstatus_to_exitcode(status) % 256]))


def run(words: list[str], folder: str, environment: dict[str, str]) -> int:
    """Run a verb as a process of its own would, and return its exit code."""
    import torch

    from onestep.cli import main

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    sys.argv = ["onestep", *words]
    try:
        return main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve(command: list[str]) -> int:
    """Run the command, answer calls until it ends, and return its exit code."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        address = f"{folder}/socket"
        client = Path(folder) / "onestep"
        client.write_text(_CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        listener.bind(address)
        listener.listen(64)
        listener.settimeout(0.1)
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
        started = os.spawnvp(os.P_NOWAIT, command[0], command)
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == started:
                return os.waitstatus_to_exitcode(status) % 256
            try:
                caller, _ = listener.accept()
            except TimeoutError:
                continue
            with caller:
                caller.setblocking(True)
                if os.fork() == 0:
                    listener.close()
                    answer(caller)
                    os._exit(0)


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file, which no `onestep` has on its path
    import_all()
    sys.exit(serve(sys.argv[1:]))
