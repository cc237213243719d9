#!/usr/bin/env bash
# Test of the container without an engine: install.sh on a bare Debian 12, then the first stage of the demo by the image's
# account, in the image's environment, without a network.
# Usage, as root: tests/containers/chroot.sh FOLDER       creates FOLDER, fills it with 8 GB, deletes it at the end
#
# Packages come from the sources of this machine's apt and pip, whose settings are copied into the folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=${1:?usage: tests/containers/chroot.sh FOLDER}
authorities=/etc/ssl/handed_in.crt # this machine's; apt overwrites Debian's own file
began=$SECONDS

fail() {
	echo "chroot.sh: $1" >&2
	exit 1
}

report() {
	echo "chroot.sh: $((SECONDS - began)) s: $1" >&2
}

[ "$(id -u)" = 0 ] || fail "started by $(id -un), expected root"
command -v debootstrap >/dev/null || fail "no debootstrap on PATH; apt-get install debootstrap"

# Mount in a separate namespace, so that no mount remains when the folder is deleted.
if [ -z "${ONESTEP_CHROOT_INSIDE:-}" ]; then
	[ ! -e "$root" ] || fail "$root is there already, expected a new folder"
	trap 'rm -rf --one-file-system "$root"' EXIT
	ONESTEP_CHROOT_INSIDE=1 unshare --mount --propagation private --pid --fork "tests/containers/$(basename "$0")" "$root"
	exit
fi

mirror() {
	grep -hoE '^(URIs:|deb )[^#]*' /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null |
		grep -oE '(https?|file)://[^ ]+' | head -n 1
}

# The folders from which this machine's pip installs packages; an index ("simple") refers to files beside it.
package_folders() {
	{ python3 -m pip config list; env | grep '^PIP_' || true; } | grep -oE '(file://|=.?)/[^ '"'"']+' | grep -oE '/[a-z].*' |
		sed 's:/simple/*$::' | sort --unique | while read -r path; do [ ! -d "$path" ] || echo "$path"; done
}

# pip's settings as variables: those of files first, so that those of the environment override them.
pip_settings() {
	python3 -m pip config list | sed -nE "s/^(global|install)\.([a-z-]+)='(.*)'$/\2 \3/p" | while read -r name value; do
		echo "PIP_$(echo "$name" | tr 'a-z-' 'A-Z_')=$value"
	done
	env | grep -iE '^(PIP_[A-Z_]+|https?_proxy|no_proxy)=' || true
	[ ! -f "$root$authorities" ] || printf '%s\n' "SSL_CERT_FILE=$authorities" "PIP_CERT=$authorities"
}

hand_in() {
	cp --dereference /etc/resolv.conf /etc/hosts "$root/etc/"
	rm -rf "$root/etc/apt/sources.list" "$root/etc/apt/sources.list.d"
	cp --archive /etc/apt/sources.list.d "$root/etc/apt/"
	[ ! -f /etc/apt/sources.list ] || cp /etc/apt/sources.list "$root/etc/apt/"
	apt-config dump | grep '^Acquire::' >"$root/etc/apt/apt.conf.d/00settings" || true
	[ ! -f /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$root$authorities"
	mount -t proc proc "$root/proc"
	mount --rbind /dev "$root/dev"
	package_folders | while read -r folder; do
		mkdir -p "$root$folder"
		mount --bind "$folder" "$root$folder"
	done
}

# The files of the repository, with uncommitted changes.
copy_to() {
	mkdir -p "$1"
	git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from - | tar --extract --directory "$1"
}

install() {
	mapfile -t settings < <(pip_settings)
	env --ignore-environment PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${settings[@]}" \
		chroot "$root" /opt/source/containers/install.sh "$1" /opt/source
}

# A command by the image's account, in the image's environment, without a network.
as_account() {
	unshare --net env --ignore-environment HOME=/home/onestep PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 \
		"$(command -v chroot)" --userspec=onestep:onestep "$root" /bin/bash -c "$(sed -n '/^%environment/,/^$/p' containers/onestep.def | tail -n +2)
cd ~/work; set -e; $1"
}

debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root" "$(mirror)" >/dev/null
report "Debian 12 with Python $(chroot "$root" python3 --version | cut -d' ' -f2), $(du -sm "$root" | cut -f1) MB"
hand_in
copy_to "$root/opt/source"
install environment
report "install.sh environment"
install package
report "install.sh package, $(du -sm "$root/opt/onestep" | cut -f1) MB of Python packages"

copy_to "$root/home/onestep/work"
chroot "$root" chown -R onestep:onestep /home/onestep
sed -n '/^%test/,/^$/p' containers/onestep.def | tail -n +2 >"$root/tmp/test"
as_account "[ \$(id -un) = onestep ]; . /tmp/test; onestep --help | head -n 1"
report "%test of onestep.def, by $(as_account 'id -un')"
as_account "snakemake --directory demo --profile profiles/local --cores 1 --quiet rules -- results/data/digits.zip"
report "the demo's first stage"
as_account "sha256sum demo/results/data/digits.zip"
