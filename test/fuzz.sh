#!/usr/bin/env bash
# Runs each fuzz target of the tree for FUZZTIME (10s), or those whose name matches FUZZ.
set -euo pipefail
cd "$(dirname "$0")/.."
n=0
while IFS=: read -r file _ line; do
	target=$(sed -E 's/^func (Fuzz[A-Za-z0-9_]+).*/\1/' <<<"$line")
	[[ $target =~ ${FUZZ:-.} ]] || continue
	echo "== $target in $(dirname "$file")"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-10s}" "./$(dirname "$file")"
	n=$((n + 1))
done < <(git ls-files '*_test.go' | xargs grep -nE '^func Fuzz[A-Za-z0-9_]+\(' /dev/null)
echo "$n fuzz targets, ${FUZZTIME:-10s} each"
[ $n -gt 0 ]
