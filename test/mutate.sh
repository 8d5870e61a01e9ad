#!/usr/bin/env bash
# The test of the tests: with the tag mutate each known defect is built in, one after the other, and the
# tests named *Mutat* demand that it is found. At the end a table says which test found which.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=$(git ls-files '*_test.go' | xargs grep -lE '^func Test[A-Za-z]*Mutat' | xargs -r -n1 dirname | sort -u | sed 's|^|./|')
[ -n "$packages" ] || { echo "no mutation tests" >&2; exit 1; }
out=$(mktemp)
trap 'rm -f "$out"' EXIT
status=0
# shellcheck disable=SC2086
go test -tags mutate -count=1 -v -timeout 30m -run Mutat $packages >"$out" 2>&1 || status=$?
# Subtests are named MUTATION or MUTATION/TEST; a package's output ends with its own line. A simulation says
# within how many seeds.
awk '
	/^ *--- (PASS|FAIL): Test[A-Za-z]*Mutat[A-Za-z]*\// {
		split($3, part, "/"); m = part[2]; t = part[3] == "" ? part[1] : part[3]
		if (m == "" || m == "none") next
		n++; name[n] = m; test[n] = t; ok[n] = $2 == "PASS:"; leaf[n] = part[3] != ""
	}
	/^(ok|FAIL)[ \t]/ { for (i = done + 1; i <= n; i++) pkg[i] = $2; done = n }
	END {
		for (i = 1; i <= n; i++) {
			if (!leaf[i]) { group = 0; for (j = 1; j <= n; j++) if (leaf[j] && name[j] == name[i] && pkg[j] == pkg[i]) group = 1; if (group) continue }
			sub(/.*gabion\/gabion\//, "", pkg[i])
			printf "%-26s %s by %s in %s\n", name[i] ":", ok[i] ? "found" : "SURVIVED,", test[i], pkg[i]
			seen[name[i]]++
		}
		for (m in seen) total++
		printf "%d defects\n", total
	}' "$out" | sort
if [ "$status" -ne 0 ]; then
	cat "$out"
fi
exit "$status"
