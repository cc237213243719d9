#!/usr/bin/env bash
# Makes the virtual environment and installs the lock file and this package; does nothing when nothing changed.
# Usage: envs/setup.sh PYTHON FOLDER
set -euo pipefail
python=$1
venv=$2
needed_gb=6

fail() {
	echo "setup: $1" >&2
	exit 1
}

# The last error in pip's log, or its last line where pip names none.
reason() {
	grep -E '^(ERROR|error)' "$1" | tail -n 1 || tail -n 1 "$1"
}

command -v "$python" >/dev/null || fail "no '$python' on PATH; install Python 3.11 or newer (Debian: apt install python3 python3-venv), or name one: make setup PYTHON=/path/to/python3.11"
version=$("$python" -c 'import platform; print(platform.python_version())') || fail "'$python' does not start"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "'$python' is Python $version, expected 3.11 or newer; name a newer one: make setup PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "Python $version has no venv module; install it (Debian: apt install python3-venv)"

wanted="$version $PWD $(cat envs/requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)"
if [ -f "$venv/complete" ] && [ "$(cat "$venv/complete")" = "$wanted" ]; then
	exit 0
fi

# An environment of another Python, or moved from another folder, cannot be repaired in place.
if [ -f "$venv/complete" ] && [ "$(cut -d' ' -f1,2 "$venv/complete")" != "$version $PWD" ]; then
	rm -rf "$venv"
fi
have_kb=$(($(df -Pk . | awk 'NR == 2 { print $4 }') + $(du -sk "$venv" 2>/dev/null | cut -f1 || true) + 0))
[ "$have_kb" -ge $((needed_gb * 1000 * 1000)) ] || fail "$((have_kb / 1000000)) GB free in $PWD, expected $needed_gb GB for the environment; free some space"

rm -f "$venv/complete"
echo "setup: installing into $venv (about $needed_gb GB, some minutes) ..." >&2
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || fail "could not make the virtual environment $venv (see above)"
log=$venv/setup.log
"$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off -r envs/requirements.lock >"$log" 2>&1 &
installer=$!
trap 'kill $installer 2>/dev/null || true' EXIT
began=$SECONDS
while kill -0 "$installer" 2>/dev/null; do
	sleep 1
	waited=$((SECONDS - began))
	[ $((waited % 10)) -ne 0 ] || echo "setup: $waited s, $(tail -n 1 "$log" | cut -c1-80), $(du -sm "$venv" | cut -f1) MB on disk" >&2
done
wait "$installer" || fail "installing envs/requirements.lock failed: $(reason "$log") (log: $log)"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-build-isolation --no-deps --editable . >>"$log" 2>&1 ||
	fail "installing this package failed: $(reason "$log") (log: $log)"
echo "$wanted" >"$venv/complete"
echo "setup: done" >&2
