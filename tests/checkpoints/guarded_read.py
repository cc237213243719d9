"""Read every file of a folder in a process that may take little more memory than it has; print what each led to.

Usage: guarded_read.py FOLDER MEGABYTES. A program of its own, so that the limit harms no one else.
"""

import json
import resource
import sys
import time
from pathlib import Path

from onestep.checkpoints.edm_pickle import read_edm_pickle


def outcome(path: Path) -> dict[str, object]:
    """Return the kind and text of the error that reading `path` ends with."""
    began = time.monotonic()
    try:
        read_edm_pickle(path)
        kind, message = "", "it was read"
    except BaseException as error:  # whatever leaves is what the test wants to see
        kind, message = type(error).__name__, str(error)
    return {"kind": kind, "message": message, "seconds": time.monotonic() - began}


def limit_memory(megabytes: int) -> None:
    """Let this process have `megabytes` beyond the address space it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    limit_memory(int(sys.argv[2]))
    print(json.dumps({path.name: outcome(path) for path in sorted(Path(sys.argv[1]).iterdir())}))
