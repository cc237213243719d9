#!/usr/bin/env bash
# Stops what up.sh started, by the process ids it recorded: never by name. Its files stay, for their logs.
ROOT=${SLURM_TEST_ROOT:-/var/tmp/onestep-slurm}
export SLURM_CONF=$ROOT/etc/slurm.conf PATH=$PATH:/usr/sbin
[ -d "$ROOT/run" ] || exit 0

# The process that a pid file names, if it still is that program, started with our folder.
recorded() {
	local pid
	[ -s "$2" ] || return
	pid=$(tr -dc 0-9 <"$2")
	grep -q "$1" "/proc/$pid/comm" 2>/dev/null || return
	grep -qsF "$ROOT" "/proc/$pid/cmdline" "/proc/$pid/environ" || return
	echo "$pid"
}

# stop PROGRAM PIDFILE...: TERM to all, then KILL to what is left after 20 s.
stop() {
	local program=$1 file pid pids="" end=$((SECONDS + 20))
	shift
	for file in "$@"; do
		pid=$(recorded "$program" "$file") && kill "$pid" 2>/dev/null && pids="$pids $pid"
	done
	for pid in $pids; do
		while kill -0 "$pid" 2>/dev/null; do
			[ $SECONDS -lt $end ] || kill -9 "$pid" 2>/dev/null
			sleep 0.05
		done
		echo "stopped $program $pid"
	done
}

if timeout 5 scontrol ping 2>/dev/null | grep -q 'is UP'; then
	jobs=$(timeout 5 squeue -h -o %A 2>/dev/null | sort -u)
	# shellcheck disable=SC2086  # several ids
	[ -z "$jobs" ] || timeout 10 scancel $jobs >/dev/null 2>&1
	for _ in $(seq 60); do
		[ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break
		sleep 0.25
	done
fi
stop slurm "$ROOT"/run/slurmd.*.pid "$ROOT/run/slurmctld.pid"
stop slurmdbd "$ROOT/run/slurmdbd.pid"
stop mariadbd "$ROOT/run/mysqld/mariadbd.pid"
stop munged "$ROOT/run/munged.pid"
exit 0
