#!/usr/bin/env bash
# Trains on a Cloud TPU, which is made for it and deleted afterwards:
#   ./run.sh tpu --config=FILE [--config.FIELD=VALUE ...] [--profile=STEPS]
#     [--dry_run] [--keep]
# in any order: the first line goes to ssl_music.main. --dry_run prints the
# commands instead; --keep leaves the TPU where it is.
# Project and credentials are those of gcloud. From the environment come
#   TPU_NAME     ssl-music if it is not given
#   TPU_ZONE     us-east5-b
#   TPU_VERSION  of the TPU's software, v2-alpha-tpuv6e
#   TPU_TYPE     v6e-8, or another of a single machine, on whose disk the workdir
#                is: several would have to share it (see README, Many hosts)
#   TPU_SPOT=1   a spot TPU: cheap, and it may be taken away
#   TPU_BUCKET   gs://BUCKET/FOLDER, where the workdir is copied every minute: the
#                same command goes on from there on a new TPU. A spot TPU needs
#                it, and the TPU's service account the right to write there
#   TPU_DATA     the folder of prepared data sets, copied there
#   TPU_OUT      the workdir here, runs/tpu: the run ends in it, and without a
#                bucket goes on from it
set -euo pipefail
cd "$(dirname "$0")/.."

name=${TPU_NAME:-ssl-music}
zone=${TPU_ZONE:-us-east5-b}
data=${TPU_DATA:-${TFDS_DATA_DIR:-}}
out=${TPU_OUT:-runs/tpu}
bucket=${TPU_BUCKET:-}
bucket=${bucket%/}
dry_run='' keep='' config='' arguments=()
for argument in "$@"; do
  case $argument in
    --dry-run | --dry_run) dry_run=1 ;;
    --keep) keep=1 ;;
    --config=* | --config.*=* | --profile=*) arguments+=("$argument") ;;
    *)
      echo "error: ./run.sh tpu knows no $argument: give --config=FILE," \
        "--config.FIELD=VALUE, --profile=STEPS, --dry_run or --keep" >&2
      exit 2
      ;;
  esac
  [[ $argument != --config=* ]] || config=${argument#*=}
done
if [ ! "$config" ]; then
  sed -n '2,/^set /s/^# \?//p' scripts/tpu.sh
  exit 2
fi
if [ ! -f "${config%%:*}" ]; then
  echo "error: no config file ${config%%:*}: give one of configs/" >&2
  exit 2
fi

if [ "$bucket${TPU_SPOT:-}" ] && ! [[ $bucket =~ ^gs:/(/[A-Za-z0-9._-]+){2,}$ ]]
then
  echo "error: a spot TPU takes along what is only on its disk: give" \
    "TPU_BUCKET=gs://BUCKET/FOLDER, of letters, digits and ._-" >&2
  exit 2
fi

# Words as one would type them.
line() {
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}

run() {
  line "$@"
  [ "$dry_run" ] || "$@"
}

tpu() { run gcloud compute tpus tpu-vm "$@" "--zone=$zone"; }
all() {
  tpu ssh "$name" --worker=all --ssh-flag=-oServerAliveInterval=30 \
    "--command=$1"
}

# Copies the workdir; what was deleted goes when what took its place is there.
sync='gcloud storage rsync --recursive'
copy="$sync workdir $bucket\
 && $sync --delete-unmatched-destination-objects workdir $bucket"

# However this ends, what has been learned is fetched and the TPU is deleted.
made='' began=''
# What still trains there gets the time to save.
stop() {
  all 'pkill -TERM -f "[s]sl_music.main"; for i in $(seq 120); do
 pgrep -f "[s]sl_music.main" >/dev/null || break; sleep 1; done' || true
  [ ! "$bucket" ] || all "cd ssl_music && $copy" || true
}
fetch() {
  # tar ends with 1 where a file has changed meanwhile, and with 2 in earnest.
  tpu ssh "$name" --worker=0 \
    '--command=tar -czf workdir.tar.gz -C ssl_music/workdir . || test $? = 1' &&
    tpu scp --worker=0 "$name:workdir.tar.gz" build/ &&
    run mkdir -p "$out" &&
    run tar -xzf build/workdir.tar.gz -C "$out"
}
finish() {
  local code=$?
  trap '' INT TERM
  if [ "$began" ] && [ "$code" != 0 ]; then
    stop
  fi
  if [ "$began" ] && ! fetch && ! fetch; then
    echo "error: the workdir could not be fetched${bucket:+; it is in $bucket,}" \
      "${bucket:+and the same command goes on from there}" >&2
    code=1
  fi
  if [ "$made" ] && [ "$keep" ]; then
    echo "the TPU is kept, and costs, until it is deleted:"
    line gcloud compute tpus tpu-vm delete "$name" "--zone=$zone"
  elif [ "$made" ] && ! tpu delete "$name" --quiet; then
    echo "error: the TPU $name could not be deleted: see to it" >&2
    code=1
  fi
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Nobody else's is taken, nor deleted.
if [ ! "$dry_run" ] && gcloud compute tpus tpu-vm describe "$name" \
  "--zone=$zone" >/dev/null 2>&1; then
  echo "error: there is a TPU $name in $zone: give another TPU_NAME" >&2
  exit 2
fi
made=1 # or nearly so, if this is interrupted
tpu create "$name" "--accelerator-type=${TPU_TYPE:-v6e-8}" \
  "--version=${TPU_VERSION:-v2-alpha-tpuv6e}" ${TPU_SPOT:+--spot}

run mkdir -p build
run tar -czf build/ssl_music.tar.gz \
  pyproject.toml constraints.txt README.md LICENSE ssl_music configs
tpu scp --worker=all build/ssl_music.tar.gz "$name:"
if [ "$data" ]; then
  tpu scp --recurse --worker=all "$data" "$name:data"
fi
# The TPU's own Python is too old for jax: uv brings another.
all 'mkdir -p ssl_music/workdir && tar -xzf ssl_music.tar.gz -C ssl_music'
all "cd ssl_music && python3 -m pip install --quiet uv\
 && python3 -m uv venv --python 3.12 .venv\
 && python3 -m uv pip install --constraint constraints.txt --editable .[tpu]"
train="TFDS_DATA_DIR=~/data .venv/bin/python -m ssl_music.main\
 --workdir=workdir $(line "${arguments[@]}")"
if [ "$bucket" ]; then
  train="{ (while sleep 60; do $copy; done) >copies.log 2>&1 & $train;\
 code=\$?; kill \$!; $copy && exit \$code; }"
  # The first file shows that it can be written to, and makes the folder.
  all "cd ssl_music && date | gcloud storage cp - $bucket/started\
 && $sync $bucket workdir"
elif [ -d "$out" ]; then
  run tar -czf build/workdir.tar.gz -C "$out" .
  tpu scp --worker=all build/workdir.tar.gz "$name:"
  all 'tar -xzf workdir.tar.gz -C ssl_music/workdir'
fi
began=1
all "cd ssl_music && $train"
