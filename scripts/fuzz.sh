#!/usr/bin/env bash
# Runs every fuzz target for the time given (default 10s), one after another.
set -eu
t=${1:-10s}
grep -rlE '^func Fuzz' --include='*_test.go' . | while read -r f; do
	dir=$(dirname "$f")
	grep -oE '^func Fuzz[A-Za-z0-9_]*' "$f" | sed 's/func //' | while read -r name; do
		echo "fuzz $dir $name $t"
		go test "$dir" -run '^$' -fuzz "^$name\$" -fuzztime "$t" </dev/null
	done
done
