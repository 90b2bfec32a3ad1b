#!/usr/bin/env bash
# Everything that wants a card, in under ten minutes of one H100 or H200: the tests that need CUDA, then every benchmark,
# appended to benchmarks/ledger.csv, from which docs/benchmarks.md is written. Run it in a checkout with irdm installed.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "There is no CUDA device: nothing was run." >&2
    exit 3
}
failed=0
timeout 120 "$PYTHON" -m pytest -q -m cuda -rs tests || failed=1
timeout 450 "$PYTHON" benchmarks/run.py --device cuda --repeats 5 --record || failed=1
git --no-pager diff --stat -- benchmarks/ledger.csv docs/benchmarks.md
exit $failed
