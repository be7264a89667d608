#!/usr/bin/env bash
# Time launch/quickstart.sh in a fresh clone with no environment, from nothing to the results.
#
#   bash benchmarks/quickstart.sh
#
# Two clones, one after the other: the first fills pip's cache, the second is the measured one,
# downloads aside.
set -euo pipefail
repository="$(cd "$(dirname "$0")/.." && pwd)"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
for clone in first second; do
  git clone --quiet "$repository" "$scratch/$clone"
  began=$SECONDS
  env -u VIRTUAL_ENV bash "$scratch/$clone/launch/quickstart.sh" >"$scratch/$clone.log" 2>&1 ||
    { cat "$scratch/$clone.log" && exit 1; }
  took=$((SECONDS - began))
  printf '%s clone: %d s\n' "$clone" "$took"
done
python3 - "$scratch/second/runs/quickstart-1/results.csv" "$took" <<'PYTHON'
import csv, sys

rows = list(csv.DictReader(open(sys.argv[1])))
best = max(float(row["best_accuracy"]) for row in rows)
print(f"from nothing to results, downloads aside: {sys.argv[2]} s (target 180 or less)")
print(f"{len(rows)} configs, best digits accuracy {best:.4f} (target 0.96 or more)")
PYTHON
