#!/bin/sh
# Steps that turn a Debian with Python into the image; called by Dockerfile and onestep.def.
# Usage, as root: install.sh environment FOLDER    system packages, user, virtual environment from envs/requirements.lock
#                 install.sh package FOLDER        this package, into the virtual environment
# FOLDER contains this repository, or its part that .dockerignore permits. Uses the python3 on PATH.
set -eu

VENV=/opt/onestep
CACHE=/cache
ACCOUNT=onestep

fail() {
	echo "install.sh: $1" >&2
	exit 1
}

# g++ and libc6-dev: torch.compile and Triton build kernels during training. procps: Snakemake's benchmarks.
system_packages() {
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update
	apt-get -qq install --yes --no-install-recommends ca-certificates g++ libc6-dev procps
	rm -rf /var/lib/apt/lists/*
}

# Engines that map the calling user into the image do not need the account; any user may write to the cache.
account() {
	id "$ACCOUNT" >/dev/null 2>&1 || useradd --create-home --uid 1000 --user-group --shell /bin/bash "$ACCOUNT"
	mkdir -p "$CACHE"
	chmod 1777 "$CACHE"
}

python_packages() {
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "got $(python3 --version), expected 3.11 or newer"
	python3 -m venv "$VENV"
	"$VENV/bin/python" -m pip install --no-cache-dir --disable-pip-version-check --progress-bar off --no-deps --requirement "$1"
	"$VENV/bin/python" -m pip check --disable-pip-version-check
}

[ $# -eq 2 ] || fail "usage: install.sh environment|package FOLDER"
[ -f "$2/envs/requirements.lock" ] || fail "$2: got no envs/requirements.lock, expected this repository"
case $1 in
environment)
	system_packages
	account
	python_packages "$2/envs/requirements.lock"
	;;
package)
	"$VENV/bin/python" -m pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation "$2"
	"$VENV/bin/onestep" --help >/dev/null
	;;
*) fail "got $1, expected environment or package" ;;
esac
