#!/usr/bin/env bash
# Formatting, go vet with every build tag, staticcheck. The linter is pinned in test/tools.
set -euo pipefail
cd "$(dirname "$0")/.."
files() { git ls-files -co --exclude-standard "$@" | while read -r f; do [ ! -e "$f" ] || echo "$f"; done; }
bad=$(gofmt -l $(files '*.go'))
if [ -n "$bad" ]; then
	printf 'not formatted, run gofmt -w:\n%s\n' "$bad"
	exit 1
fi
go vet ./...
go vet -tags mutate ./...
if (cd test/tools && go build -o ../../bin/staticcheck honnef.co/go/tools/cmd/staticcheck); then
	bin/staticcheck ./...
elif [ "${CI:-}" = true ]; then
	echo "check: staticcheck cannot be built" >&2
	exit 1
else
	echo "check: staticcheck cannot be built here, skipped" >&2
fi
for f in $(files '*.sh' .ci/run); do bash -n "$f"; done
echo "check: ok"
