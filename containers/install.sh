#!/bin/sh
# The steps that make a Debian with Python into the image. Dockerfile, onestep.def and the chroot of the tests call them.
# Usage, as root: install.sh environment FOLDER    system packages, user, virtual environment from envs/requirements.lock
#                 install.sh package FOLDER        this package, into the virtual environment
# FOLDER holds this repository, or what .dockerignore leaves of it. The python3 on PATH is the one that is used.
set -eu

VENV=/opt/onestep
CACHE=/cache
ACCOUNT=onestep

fail() {
	echo "install.sh: $1" >&2
	exit 1
}

# g++ and libc6-dev: torch.compile and Triton build kernels while a training runs. procps: Snakemake's benchmarks.
system_packages() {
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update
	apt-get -qq install --yes --no-install-recommends ca-certificates g++ libc6-dev procps
	rm -rf /var/lib/apt/lists/*
}

# A container engine that maps its caller's user into the image does without the account; any user may write the cache.
account() {
	id "$ACCOUNT" >/dev/null 2>&1 || useradd --create-home --uid 1000 --user-group --shell /bin/bash "$ACCOUNT"
	mkdir -p "$CACHE"
	chmod 1777 "$CACHE"
}

python_packages() {
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$(python3 --version), expected 3.11 or newer"
	python3 -m venv "$VENV"
	"$VENV/bin/python" -m pip install --no-cache-dir --disable-pip-version-check --progress-bar off --no-deps --requirement "$1"
	"$VENV/bin/python" -m pip check --disable-pip-version-check
}

[ $# -eq 2 ] || fail "usage: install.sh environment|package FOLDER"
[ -f "$2/envs/requirements.lock" ] || fail "$2: found no envs/requirements.lock, expected this repository"
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
*) fail "$1: expected environment or package" ;;
esac
