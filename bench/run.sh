#!/usr/bin/env bash
# Builds and runs the benchmark. Options: those of bench/main.go, also as BENCH='-rounds 5 -record'.
# FLOOR=DIR adds the probe whose source is in DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
go build -o bin/bench ./bench
# shellcheck disable=SC2086
exec bin/bench ${BENCH:-} "$@"
