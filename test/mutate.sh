#!/usr/bin/env bash
# The test of the tests: with the tag mutate each known defect is built in, one after the other, and the
# tests named *Mutat* demand that it is found.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=$(git ls-files '*_test.go' | xargs grep -lE '^func Test[A-Za-z]*Mutat' | xargs -r -n1 dirname | sort -u | sed 's|^|./|')
[ -n "$packages" ] || { echo "no mutation tests" >&2; exit 1; }
# shellcheck disable=SC2086
exec go test -tags mutate -count=1 -v -timeout 15m -run Mutat $packages
