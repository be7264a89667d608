#!/usr/bin/env bash
# Install Debian's chromium and its driver, in which the tests look at `mophpc report`'s page. Does
# nothing where they are there, and nothing but say so where it may not install them: the tests
# that need a browser are then skipped.
#
#   bash launch/chromium.sh
set -uo pipefail
if type -P chromium >/dev/null && type -P chromedriver >/dev/null; then
  exit 0
fi
if [[ "$(id -u)" != 0 ]] || ! type -P apt-get >/dev/null; then
  echo "chromium.sh: no chromium, and it can only be installed by root with apt-get;" \
    "the tests in a browser will be skipped." >&2
  exit 0
fi
echo "chromium.sh: installing chromium" >&2
export DEBIAN_FRONTEND=noninteractive
log="$(mktemp)"
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends \
  chromium chromium-driver fonts-dejavu-core; } </dev/null >"$log" 2>&1; then
  tail -n 5 "$log" >&2
  echo "chromium.sh: chromium could not be installed; the tests in a browser will be skipped." >&2
fi
rm -f -- "$log"
