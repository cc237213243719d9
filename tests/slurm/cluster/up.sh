#!/usr/bin/env bash
# A real SLURM on this one machine, for tests: munge, MariaDB, slurmdbd, slurmctld and a slurmd for each node, all on
# loopback, with CPUs, memory and GPUs that are declared rather than there. Fresh at every call. Needs root.
# Then: source $SLURM_TEST_ROOT/env.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# What may be set from outside.
ROOT=${SLURM_TEST_ROOT:-/var/tmp/onestep-slurm}  # everything it writes, but for the names in /etc/hosts
PORT=${SLURM_TEST_BASEPORT:-28410}                # this and the next 2 + NODES ports
NODES=${SLURM_TEST_NODES:-2}                      # called n1, n2, ...
CPUS=${SLURM_TEST_CPUS:-16}                       # of a node
GPUS=${SLURM_TEST_GPUS:-8}                        # of a node, of type a100
MEMORY=${SLURM_TEST_MEM_MB:-1024000}              # of a node
CRED_EXPIRE=${SLURM_TEST_CRED_EXPIRE:-5}          # seconds that a requeued job waits before it starts again
KILL_WAIT=${SLURM_TEST_KILL_WAIT:-3}              # seconds from TERM to KILL
NODE_TIMEOUT=${SLURM_TEST_NODE_TIMEOUT:-15}       # seconds of silence after which a node is DOWN
MIN_JOB_AGE=${SLURM_TEST_MIN_JOB_AGE:-300}        # seconds that squeue remembers a finished job

HOST=$(hostname)
FIRST_JOB=$((PORT - 19000))
PORT_SQL=$PORT PORT_DBD=$((PORT + 1)) PORT_CTLD=$((PORT + 2)) PORT_NODE=$((PORT + 3))
COMMANDS="sacct sacctmgr salloc sattach sbatch sbcast scancel scontrol sdiag sinfo sprio squeue sreport srun sshare sstat"
export PATH=$PATH:/usr/sbin

die() {
	echo "up.sh: $*" >&2
	exit 1
}

# This machine cannot have a cluster, which is not a failure of one: exit code 77.
lacks() {
	echo "up.sh: $*" >&2
	exit 77
}

report() {
	printf '[%3d s] %s\n' "$SECONDS" "$*"
}

# wait_for SECONDS WHAT COMMAND...
wait_for() {
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt "$end" ] || die "$what did not come up in time; its log is in $ROOT/log"
		sleep 0.05
	done
	report "$what"
}

# The daemons listen on what these names resolve to: it must be loopback.
name_loopback() {
	grep -qE "^127\.[0-9.]+[[:space:]](.*[[:space:]])?$1([[:space:]]|$)" /etc/hosts || echo "127.0.0.1 $1" >>/etc/hosts
	case "$(getent ahostsv4 "$1" | awk 'NR == 1 { print $1 }')" in
	127.*) ;;
	*) die "$1 does not resolve to loopback (/etc/hosts)" ;;
	esac
}

# fill FILE: from conf/FILE.in, with each @NAME@ replaced by the value of NAME.
fill() {
	local text name
	text=$(<"$here/conf/$1.in")
	for name in $(grep -o '@[A-Z_]*@' "$here/conf/$1.in" | tr -d @ | sort -u); do
		text=${text//"@$name@"/${!name}}
	done
	printf '%s\n' "$text" >"$ROOT/etc/$1"
}

[ "$(id -u)" = 0 ] || lacks "a test cluster needs root: it starts daemons of several users"
for program in munged mariadbd mariadb-install-db slurmdbd slurmctld slurmd sbatch; do
	command -v $program >/dev/null || lacks "$program is missing; on Debian: apt-get install --no-install-recommends $(paste -sd ' ' "$here/packages")" \
		"(an executable /usr/sbin/policy-rc.d with 'exit 101' keeps them from starting daemons on all interfaces)"
done

SLURM_TEST_ROOT=$ROOT "$here/down.sh" >/dev/null
rm -rf "$ROOT"
mkdir -p "$ROOT"/{bin,etc,run/mysqld,log,state,spool,sql,dev,munge}
chmod 700 "$ROOT/munge"
touch "$ROOT/log/mariadb.log"
chown mysql "$ROOT/sql" "$ROOT/run/mysqld" "$ROOT/log/mariadb.log"

name_loopback "$HOST"
NODE_LINES=
for i in $(seq "$NODES"); do
	# A job's ranks meet at the name of its first node.
	name_loopback "n$i"
	mkdir "$ROOT/spool/n$i"
	NODE_LINES+="NodeName=n$i NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT_NODE + i - 1)) CPUs=$CPUS Boards=1"
	NODE_LINES+=" SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEMORY Gres=gpu:a100:$GPUS"
	NODE_LINES+=" State=UNKNOWN"$'\n'
done
for i in $(seq 0 $((GPUS - 1))); do ln -s /dev/null "$ROOT/dev/nvidia$i"; done
LAST_NODE=$NODES LAST_GPU=$((GPUS - 1))
for file in slurm.conf gres.conf slurmdbd.conf my.cnf; do fill $file; done
chmod 600 "$ROOT/etc/slurmdbd.conf"

# Commands that carry the configuration themselves: Snakemake's jobstep plugin strips SLURM_CONF before its srun.
for command in $COMMANDS; do
	printf '#!/bin/sh\nSLURM_CONF=%s exec /usr/bin/%s "$@"\n' "$ROOT/etc/slurm.conf" "$command" >"$ROOT/bin/$command"
	chmod 755 "$ROOT/bin/$command"
done
export SLURM_CONF=$ROOT/etc/slurm.conf
cat >"$ROOT/env.sh" <<END
export SLURM_CONF=$SLURM_CONF SLURM_TEST_ROOT=$ROOT
case ":\$PATH:" in *":$ROOT/bin:"*) ;; *) export PATH=$ROOT/bin:\$PATH ;; esac
END

dd if=/dev/urandom of="$ROOT/munge/key" bs=1024 count=1 status=none
chmod 400 "$ROOT/munge/key"
munged --force --key-file "$ROOT/munge/key" --socket "$ROOT/run/munge.socket" --pid-file "$ROOT/run/munged.pid" \
	--log-file "$ROOT/log/munged.log" --seed-file "$ROOT/munge/seed" 2>>"$ROOT/log/munged.stderr"
wait_for 10 munge munge -n -S "$ROOT/run/munge.socket"

sql=$ROOT/run/mysqld/mysqld.sock
mariadb-install-db --defaults-file="$ROOT/etc/my.cnf" --user=mysql --auth-root-authentication-method=socket \
	--skip-test-db >"$ROOT/log/mariadb-install.log" 2>&1 || die "no database; see $ROOT/log/mariadb-install.log"
setsid mariadbd --defaults-file="$ROOT/etc/my.cnf" >>"$ROOT/log/mariadb.out" 2>&1 </dev/null &
wait_for 60 mariadb mariadb-admin --socket="$sql" -u root ping
mariadb --socket="$sql" -u root <<'END'
CREATE DATABASE slurm_acct_db;
CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
END

setsid slurmdbd </dev/null >>"$ROOT/log/slurmdbd.out" 2>&1
wait_for 60 slurmdbd sacctmgr -n show cluster
{
	sacctmgr -i add cluster onestep_test
	sacctmgr -i add account test Description=test Organization=test
	sacctmgr -i add user root Account=test AdminLevel=Admin || sacctmgr -i modify user root set DefaultAccount=test
} >>"$ROOT/log/sacctmgr.log" 2>&1 || die "no account; see $ROOT/log/sacctmgr.log"

setsid slurmctld -f "$SLURM_CONF" -c </dev/null >>"$ROOT/log/slurmctld.out" 2>&1
wait_for 30 slurmctld scontrol ping
for i in $(seq "$NODES"); do
	setsid slurmd -f "$SLURM_CONF" -N "n$i" </dev/null >>"$ROOT/log/slurmd.n$i.out" 2>&1
done
all_idle() { [ "$(sinfo -h -N -p main -o '%T' | grep -c '^idle$')" = "$NODES" ]; }
wait_for 30 nodes all_idle

# Up is what has run a job and remembers it.
job=$(sbatch --parsable -o /dev/null --wrap true) || die "the trial job was refused"
remembered() { sacct -n -X -j "$job" -o State | grep -q COMPLETED; }
wait_for 20 "trial job" remembered
sinfo -N -p main -o '%N %T %c %m %G'
