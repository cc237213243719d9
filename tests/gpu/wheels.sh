#!/usr/bin/env bash
# What a GPU machine without a network may lack, into .gpu: wheels, the digits, the commit. CIFAR10=FILE adds the
# published archive of CIFAR-10 for its trial. GPU_PYTHON is the version of Python there.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=.venv/bin/python
if [ ! -x "$python" ]; then python=python3; fi
mkdir -p .gpu
rm -f .gpu/*.whl
"$python" tests/gpu/wheels.py download .gpu --python-version "${GPU_PYTHON:-3.12}"
PYTHONPATH=src "$python" - <<'PROGRAM'
import shutil
from pathlib import Path

import sklearn

from onestep.bench.recording import write_commit

shutil.copy(Path(sklearn.__file__).with_name("datasets") / "data" / "digits.csv.gz", ".gpu/digits.csv.gz")
write_commit()
PROGRAM
if [ -n "${CIFAR10:-}" ]; then cp "$CIFAR10" .gpu/cifar10; fi
du -sh .gpu
