#!/usr/bin/env bash
# The parts of the plan on this machine's GPU; `make gpu`. No network: what the machine lacks comes from .gpu, which
# `make gpu-wheels` fills elsewhere. Torch is always the machine's own.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONUNBUFFERED=1 CUDA_MODULE_LOADING=LAZY
python=${PYTHON:-python3}
if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
if compgen -G '.gpu/*.whl' >/dev/null; then
	site=${TMPDIR:-/tmp}/onestep-gpu-$(id -u)
	"$python" tests/gpu/wheels.py install .gpu "$site"
	export PYTHONPATH=$site
fi
export PYTHONPATH=$PWD/src:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}
code=0
"$python" -m gpu "$@" || code=$?
# The pages of what was measured; without a GPU nothing was.
if [ "$code" != 2 ]; then "$python" docs/tools/records.py; fi
exit "$code"
