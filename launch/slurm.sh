#!/usr/bin/env bash
# Install Debian's Slurm, munge and PMIx, from which the tests of tests/slurm make a cluster of four
# nodes on this machine. Starts nothing. Does nothing where they are there, and nothing but say so
# where it may not install them: those tests are then skipped.
#
#   bash launch/slurm.sh
set -uo pipefail
if PATH="$PATH:/usr/sbin" type -P slurmctld slurmd munged srun >/dev/null &&
  compgen -G "/usr/lib/*/slurm*/mpi_pmix.so" >/dev/null &&
  compgen -G "/usr/lib/*/libpmix.so*" >/dev/null; then
  exit 0
fi
if [[ "$(id -u)" != 0 ]] || ! type -P apt-get >/dev/null; then
  echo "slurm.sh: no Slurm, and it can only be installed by root with apt-get;" \
    "the tests on Slurm will be skipped." >&2
  exit 0
fi
echo "slurm.sh: installing Slurm" >&2
export DEBIAN_FRONTEND=noninteractive
log="$(mktemp)"
# No service is started by it: the tests start what they need, in a folder of their own.
policy=/usr/sbin/policy-rc.d
[[ -e "$policy" ]] || { printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made=1; }
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends \
  slurm-wlm munge libpmix-dev; } </dev/null >"$log" 2>&1; then
  tail -n 5 "$log" >&2
  echo "slurm.sh: Slurm could not be installed; the tests on Slurm will be skipped." >&2
fi
[[ -z "${made:-}" ]] || rm -f -- "$policy"
rm -f -- "$log"
