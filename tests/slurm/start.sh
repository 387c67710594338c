#!/usr/bin/env bash
# A SLURM cluster of one node, this machine, for tests/test_cluster.py:
#   eval "$(tests/slurm/start.sh DIR)"    starts it, and says where it is
#   tests/slurm/start.sh stop DIR         ends it
# DIR holds its configuration, its state and its logs. It needs root, and
# Debian's packages slurm-wlm and munge; `--install` before DIR installs them.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 1
}

installed() { command -v slurmctld && command -v slurmd && command -v munged; }

# Ends the process whose id a file holds.
end() {
  [ -f "$1" ] || return 0
  kill "$(cat "$1")" 2>/dev/null || true
  rm -f "$1"
}

if [ "${1:-}" = stop ]; then
  for name in slurmd slurmctld munged; do end "$2/$name.pid"; done
  exit
fi
if [ "${1:-}" = --install ]; then
  shift
  if ! installed >/dev/null; then
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
      --no-install-recommends slurm-wlm munge >&2
  fi
fi
[ $# = 1 ] || fail "give a folder for the cluster's files"
[ "$(id -u)" = 0 ] || fail "a cluster can be started by root alone"
installed >/dev/null ||
  fail "install Debian's packages slurm-wlm and munge, or give --install"

mkdir -p "$1"
folder=$(cd "$1" && pwd)
mkdir -p "$folder/state" "$folder/spool"
chmod go+x "$folder" # for munge's user
host=$(hostname -s)

# Munge runs as its own user, with a key and a socket of this cluster's own.
install -d -o munge -g munge -m 711 "$folder/munge"
if [ ! -f "$folder/munge/key" ]; then
  dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
  chown munge "$folder/munge/key"
  chmod 400 "$folder/munge/key"
fi

# Four tasks at once on however few cores: the tests' jobs hardly compute.
# cred_expire: a job that is requeued waits for as many seconds, 5 at least.
cat >"$folder/slurm.conf" <<END
ClusterName=ssl_music_tests
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,requeue_delay=1
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
ReturnToService=2
JobRequeue=1
KillWait=10
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
END
export SLURM_CONF=$folder/slurm.conf

up() { sinfo --noheader --format=%T 2>/dev/null | grep -qx idle; }
# sinfo asks long where nobody answers.
if [ ! -f "$folder/slurmctld.pid" ] || ! up; then
  for name in slurmd slurmctld munged; do end "$folder/$name.pid"; done
  su -s /bin/bash munge -c "munged --key-file=$folder/munge/key \
    --socket=$folder/munge/socket --pid-file=$folder/munge/pid \
    --log-file=$folder/munge/log --seed-file=$folder/munge/seed" >&2
  ln -sf "$folder/munge/pid" "$folder/munged.pid"
  slurmctld -c -f "$SLURM_CONF" >&2
  slurmd -f "$SLURM_CONF" >&2
  for _ in $(seq 100); do
    up && break
    sleep 0.2
  done
  up || fail "the cluster did not come up: see $folder/*.log"
fi
echo "export SLURM_CONF=$SLURM_CONF"
