#!/usr/bin/env bash
# Seeded simulations for longer than the unit tests run them, or one seed again with its trace.
# env: SEED=N one seed; SIM_SECONDS=N how long (60)
set -euo pipefail
cd "$(dirname "$0")/.."
packages=$(git ls-files '*_test.go' | xargs grep -lE 'GABION_SIM_(SEED|SECONDS)' | xargs -n1 dirname | sort -u | sed 's|^|./|')
[ -n "$packages" ] || { echo "no simulations" >&2; exit 1; }
if [ -n "${SEED:-}" ]; then
	export GABION_SIM_SEED=$SEED
else
	export GABION_SIM_SECONDS=${SIM_SECONDS:-60}
fi
# shellcheck disable=SC2086
exec go test -count=1 -v -timeout $((${SIM_SECONDS:-60} * 3 + 300))s -run 'Sim|Linear' $packages
