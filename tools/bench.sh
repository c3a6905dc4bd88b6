#!/usr/bin/env bash
# Run every program in benchmark/ on the posed packs given as arguments; JSON in out/bench.
# A program that reads packs is skipped, and said so, when none is given.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/env.sh
mkdir -p out/bench
for program in benchmark/[a-z]*.py; do
    if [ "$program" = benchmark/soak.py ]; then
        echo "== $program skipped: it takes 20 minutes, run it by itself"
        continue
    fi
    packs=()
    if grep -q 'add_argument("packs"' "$program"; then
        if [ $# -eq 0 ]; then
            echo "== $program skipped: it needs posed packs, make bench PACKS=\"folder ...\""
            continue
        fi
        packs=("$@")
    fi
    echo "== $program"
    python "$program" "${packs[@]}" --out "out/bench/$(basename "$program" .py).json"
done
