#!/usr/bin/env bash
# Check mophpc: linters, the plain tests, then the MPI tests on 2 and on 4 ranks. Makes the
# environment where it is missing, and ends with one line that says what failed, if anything.
#
#   bash launch/test.sh [--no-lint | --mpi-only]
#
#   --no-lint    leave out the linters
#   --mpi-only   nothing but the MPI tests and those that start mpirun themselves
#
# Settings, all optional, as environment variables:
#   MOPHPC_MPI     openmpi (default), mpich or system; launch/env.sh has the others
#   MOPHPC_SLURM   1: the tests on Slurm fail, and are not skipped, where there is no Slurm
set -uo pipefail
lint=1 plain=1
for argument in "$@"; do
  case "$argument" in
    --no-lint) lint="" ;;
    --mpi-only) lint="" plain="" ;;
    -h | --help)
      sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "test.sh: '$argument' is not known; it takes --no-lint or --mpi-only." >&2
      exit 2
      ;;
  esac
done
cd "$(dirname "$0")/.." || exit
export MOPHPC_EXTRAS=dev
# shellcheck source=launch/env.sh
source launch/env.sh || exit

failed=()
check() { # name command...
  local name="$1"
  shift
  printf '== %s\n' "$name"
  "$@" </dev/null || failed+=("$name")
}

if [[ -n "$lint" ]]; then
  check "ruff check" ruff check --quiet .
  check "ruff format" ruff format --quiet --check .
  check "mypy" mypy
  check "codespell" codespell
  check "shellcheck" shellcheck -x launch/*.sh slurm/*.sbatch .ci/run
fi
[[ -z "$plain" ]] || bash launch/chromium.sh
bash launch/slurm.sh
# The limits below are for the launcher: pytest's own guard ends a test that hangs, and says where.
# A file's tests share what they have made, so a file stays with one of the two workers. Tests that
# start mpirun look at how long ranks take to notice something, and have the cores to themselves.
[[ -z "$plain" ]] || check "plain tests" timeout --foreground -k 10 1800 \
  python -m pytest -q -n 2 --dist loadfile -m "not mpi and not launch"
check "tests that start mpirun" timeout --foreground -k 10 1800 python -m pytest -q -m launch
for ranks in 2 4; do
  MOPHPC_TIMEOUT=600 check "MPI tests, $ranks ranks" \
    mpirun_ranks "$ranks" python -m pytest --with-mpi -m mpi tests
done

if [[ ${#failed[@]} -gt 0 ]]; then
  printf -v list '%s; ' "${failed[@]}"
  printf 'test.sh (%s): failed: %s\n' "$MOPHPC_MPI" "${list%; }"
  exit 1
fi
printf 'test.sh (%s): all passed in %d s\n' "$MOPHPC_MPI" "$SECONDS"
