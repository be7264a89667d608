#!/usr/bin/env bash
# Train the 12 configs of launch/experiments/digits.toml on 4 ranks of this machine: makes the
# environment, prepares the data and starts a run. What is there already is used again; every call
# is a new run, in the next free folder runs/quickstart-N.
#
#   bash launch/quickstart.sh
#
# Settings, all optional, as environment variables:
#   MOPHPC_RANKS   ranks, 1 to 4 (default 4; the data is in 4 shards)
#   MOPHPC_MPI     openmpi (default), mpich or system; launch/env.sh has the others
set -euo pipefail
if [[ $# -gt 0 ]]; then
  [[ "$1" == -h || "$1" == --help ]] ||
    { echo "quickstart.sh: '$1' is not known; settings are environment variables." >&2 && exit 2; }
  sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0"
  exit 0
fi
if [[ ! "${MOPHPC_RANKS:-4}" =~ ^[1-4]$ ]]; then
  echo "mophpc: MOPHPC_RANKS is '$MOPHPC_RANKS'; allowed: 1 to 4, since the data are in 4 shards." >&2
  exit 2
fi
cd "$(dirname "$0")/.."
# shellcheck source=launch/env.sh
source launch/env.sh || exit

store=stores/digits.zarr
mophpc inspect "$store" >/dev/null 2>&1 || mophpc prepare digits "$store" --shards 4

number=1
while [[ -e "runs/quickstart-$number" ]]; do number=$((number + 1)); done
mpirun_ranks "${MOPHPC_RANKS:-4}" mophpc run launch/experiments/digits.toml \
  --out "runs/quickstart-$number"
