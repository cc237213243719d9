#!/usr/bin/env bash
# The image of containers/Dockerfile, built by an engine (buildah) on a base made here, and tried by its account:
# `onestep --version`, the pipeline at a tiny size, the demo's first stages; without a network but for the build.
# Usage, as root: tests/containers/engine.sh FOLDER       creates FOLDER, fills it with 25 GB, deletes it at the end
#
# The base is Debian 12 with its Python, in place of the image that `FROM` names; no image registry is used. Packages come
# from the sources of this machine's apt and pip, whose settings are mounted for the build and are not part of the image.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=${1:?usage: tests/containers/engine.sh FOLDER}
began=$SECONDS

fail() {
	echo "engine.sh: $1" >&2
	exit 1
}

report() {
	echo "engine.sh: $((SECONDS - began)) s: $1" >&2
}

[ "$(id -u)" = 0 ] || fail "started by $(id -un), expected root"
for tool in debootstrap buildah; do
	command -v "$tool" >/dev/null || fail "no $tool on PATH; apt-get install debootstrap buildah"
done
[ ! -e "$root" ] || fail "$root is there already, expected a new folder"
mkdir -p "$root/settings/apt"
trap 'rm -rf --one-file-system "$root"' EXIT

engine() {
	buildah --storage-driver vfs --root "$root/storage" --runroot "$root/run" "$@"
}

mirror() {
	grep -hoE '^(URIs:|deb )[^#]*' /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null |
		grep -oE '(https?|file)://[^ ]+' | head -n 1
}

# The folders from which this machine's pip installs packages; an index ("simple") refers to files beside it.
package_folders() {
	{ python3 -m pip config list; env | grep '^PIP_' || true; } | grep -oE '(file://|=.?)/[^ '"'"']+' | grep -oE '/[a-z].*' |
		sed 's:/simple/*$::' | sort --unique | while read -r path; do [ ! -d "$path" ] || echo "$path"; done
}

# pip's settings as its configuration file: those of files first, so that those of the environment override them.
pip_settings() {
	echo "[global]"
	{
		python3 -m pip config list | sed -nE "s/^(global|install)\.([a-z-]+)='(.*)'$/\2 = \3/p"
		env | sed -nE 's/^PIP_([A-Z_]+)=(.*)$/\1 \2/p' | while read -r name value; do
			echo "$(echo "$name" | tr 'A-Z_' 'a-z-') = $value"
		done
	} | awk -F ' = ' '{ last[$1] = $0 } END { for (name in last) print last[name] }' |
		grep -vE '^(cert|constraint|client-cert) ' || true
}

# Settings of this machine that the build mounts: pip's, apt's, certificates, folders of packages.
mounts() {
	pip_settings >"$root/settings/pip.conf"
	echo "--volume=$root/settings/pip.conf:/etc/pip.conf:ro"
	apt-config dump | grep '^Acquire::' >"$root/settings/apt/00settings" || true
	echo "--volume=$root/settings/apt/00settings:/etc/apt/apt.conf.d/00settings:ro"
	if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
		cp /etc/ssl/certs/ca-certificates.crt "$root/settings/authorities.crt"
		echo "--volume=$root/settings/authorities.crt:/etc/ssl/handed_in.crt:ro"
		echo "cert = /etc/ssl/handed_in.crt" >>"$root/settings/pip.conf"
	fi
	package_folders | while read -r folder; do echo "--volume=$folder:$folder:ro"; done
}

# The files of the repository, with uncommitted changes.
copy_to() {
	mkdir -p "$1"
	git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from - | tar --extract --directory "$1"
}

make_base() {
	debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root/base" "$(mirror)" >/dev/null
	local container
	container=$(engine from scratch)
	engine add --quiet "$container" "$root/base" / >/dev/null
	engine commit --quiet --rm "$container" localhost/base >/dev/null
	rm -rf --one-file-system "$root/base"
}

# A command in the image, by the account that the image names, in the image's environment, without a network.
inside() {
	unshare --net buildah --storage-driver vfs --root "$root/storage" --runroot "$root/run" \
		run --isolation chroot "$container" -- /bin/bash -c "cd ~/work; set -e; $1"
}

make_base
report "base: Debian 12 with its Python"
copy_to "$root/context"
mapfile -t mounted < <(mounts)
engine build --isolation chroot --format docker --build-arg BASE=localhost/base --tag localhost/onestep \
	"${mounted[@]}" --file "$root/context/containers/Dockerfile" "$root/context" >"$root/build.log" 2>&1 ||
	{ tail -n 20 "$root/build.log" >&2; fail "the build failed"; }
report "containers/Dockerfile is built: $(engine images --format '{{.Size}}' localhost/onestep)"

container=$(engine from localhost/onestep)
copy_to "$root/work"
engine copy --quiet --chown 1000:1000 "$container" "$root/work" /home/onestep/work >/dev/null
[ "$(inside 'id -u')" = 1000 ] || fail "the image's account is not 1000"
inside 'onestep --version'
report "onestep --version, by $(inside 'id -un')"
inside 'PYTHONPATH=tests python -c "from pathlib import Path; from tiny import *; write_config(Path(\"smoke\"), tiny_config())"
onestep run --config smoke/config.yaml --cores 2 && test -s smoke/results/report/index.html' >"$root/smoke.log" 2>&1 ||
	{ tail -n 20 "$root/smoke.log" >&2; fail "the tiny pipeline failed"; }
report "the pipeline at a tiny size, to its page"
inside 'snakemake --directory demo --profile profiles/local --cores 2 --quiet all -- results/data/digits.zip results/runs/digits_backbone/run.yaml' >"$root/demo.log" 2>&1 ||
	{ tail -n 20 "$root/demo.log" >&2; fail "the demo's first stages failed"; }
report "the demo's first stages"
inside 'sha256sum demo/results/data/digits.zip'
