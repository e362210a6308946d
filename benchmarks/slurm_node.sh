#!/usr/bin/env bash
# Start a Slurm of one node (this machine) with its files in FOLDER, run a command with it, and stop it.
#
#     benchmarks/slurm_node.sh FOLDER COMMAND ...
#
# Needs root and Debian's packages: apt-get install slurmctld slurmd slurm-client munge
set -euo pipefail
folder=$(realpath -m "$1")
shift
mkdir -p "$folder"/{state,spool,munge}
cpus=$(nproc)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
chmod 700 "$folder/munge"
[ -f "$folder/munge/key" ] || head -c 128 /dev/urandom > "$folder/munge/key"
chmod 600 "$folder/munge/key"
cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$(hostname -s)
SlurmUser=root
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
MaxArraySize=${MAX_ARRAY_SIZE:-1001}
SchedulerParameters=sched_interval=1,batch_sched_delay=1
MinJobAge=60
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
export SLURM_CONF="$folder/slurm.conf"
munged --force --socket="$folder/munge/socket" --key-file="$folder/munge/key" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
slurmctld -c
slurmd -c
stop() {
    scancel --user="$(id -un)" 2> /dev/null || true
    for pid in "$folder"/slurmd.pid "$folder"/slurmctld.pid "$folder"/munge/pid; do
        [ -f "$pid" ] && kill "$(cat "$pid")" || true
    done
}
trap stop EXIT
for _ in $(seq 30); do
    sinfo --noheader --format=%T 2> /dev/null | grep -q idle && break
    sleep 1
done
"$@"
