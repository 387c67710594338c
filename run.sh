#!/usr/bin/env bash
# Makes .venv and, in it,
#   ./run.sh        pre-trains on the built-in demo music, probes, prints scores
#   ./run.sh test   passes the tests (more arguments go to pytest)
# and, without it,
#   ./run.sh tpu    trains on a Cloud TPU, see scripts/tpu.sh
# PYTHON names the interpreter (3.11 or newer) if the one found does not suit.
set -euo pipefail
cd "$(dirname "$0")"

if [ "${1:-}" = tpu ]; then
  shift
  exec scripts/tpu.sh "$@"
fi

find_python() {
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer found: set PYTHON to one" >&2
  return 1
}

# The stamp is written last, so that an interrupted installation is repeated,
# and holds what was installed, so that new requirements are installed too.
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  python=$(find_python)
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable '.[dev]'
  echo "$wanted" >.venv/installed
fi

if [ "${1:-}" = test ]; then
  shift
  # Two processes, each with whole files, whose tests share what they make.
  exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
fi

run() { .venv/bin/python -m ssl_music.main "$@"; }
export TFDS_DATA_DIR=${TFDS_DATA_DIR:-$PWD/runs/data}
run --config=configs/contrastive.py --config.online.data=demo \
  --workdir=runs/demo/contrastive
for encoder in mel random runs/demo/contrastive; do
  run --config=configs/probe.py --config.encoder="$encoder" \
    --workdir="runs/demo/probe_$(basename "$encoder")"
done
.venv/bin/python -m ssl_music.report runs/demo/probe_*
