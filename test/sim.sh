#!/usr/bin/env bash
# Whole pools under faults, simulated: the corpus and fresh seeds; or one seed again, with what its nodes log.
# env: SEED=N one seed; SIM_SECONDS=N of fresh seeds (60); NODES=N in each pool (drawn from the seed)
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${SIM_SECONDS:-60}
export GABION_SIM_NODES=${NODES:-}
if [ -n "${SEED:-}" ]; then
	export GABION_SIM_SEED=$SEED
	run=WholePools
else
	# The core alone is a hundred times as fast.
	GABION_SIM_SECONDS=$((seconds / 10 + 1)) go test -count=1 -v -timeout 1h -run Simulation ./quorum/paxos
	export GABION_SIM_SECONDS=$seconds
	run="SeedReplays|WholePools"
fi
exec go test -count=1 -v -tags sim -timeout $((seconds + 1800))s -run "$run" ./internal/sim/simulate
