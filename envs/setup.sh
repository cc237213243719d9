#!/usr/bin/env bash
# Create the virtual environment and install the lock file and this package, unless it is up to date.
# Usage: envs/setup.sh PYTHON FOLDER
set -euo pipefail
python=$1
venv=$2
needed_gb=6

fail() {
	echo "setup: $1" >&2
	exit 1
}

# The last error in pip's log, else its last line.
reason() {
	grep -E '^(ERROR|error)' "$1" | tail -n 1 || tail -n 1 "$1"
}

command -v "$python" >/dev/null || fail "got no '$python' on PATH, expected Python 3.11 or newer. Fix: install it (Debian: apt install python3 python3-venv), or make setup PYTHON=/path/to/python3.11"
version=$("$python" -c 'import platform; print(platform.python_version())') || fail "'$python' does not start"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python: got Python $version, expected 3.11 or newer. Fix: make setup PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "got Python $version without the venv module. Fix: install it (Debian: apt install python3-venv)"

current="$version $PWD $(cat envs/requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)"
if [ -f "$venv/complete" ] && [ "$(cat "$venv/complete")" = "$current" ]; then
	exit 0
fi

# Rebuild an environment of another Python version or from another folder.
if [ -f "$venv/complete" ] && [ "$(cut -d' ' -f1,2 "$venv/complete")" != "$version $PWD" ]; then
	rm -rf "$venv"
fi
have_kb=$(($(df -Pk . | awk 'NR == 2 { print $4 }') + $(du -sk "$venv" 2>/dev/null | cut -f1 || true) + 0))
[ "$have_kb" -ge $((needed_gb * 1000 * 1000)) ] || fail "$PWD: got $((have_kb / 1000000)) GB free, expected $needed_gb GB. Fix: free some space"

rm -f "$venv/complete"
echo "setup: installing into $venv (about $needed_gb GB, several minutes) ..." >&2
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || fail "could not create the virtual environment $venv (see above)"
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
echo "$current" >"$venv/complete"
echo "setup: done" >&2
