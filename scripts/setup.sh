#!/usr/bin/env bash
# Installs what the tests and the demo use and this machine lacks. Root on Debian: by apt. Else it says what will be skipped and why.
# Nothing here is needed to build or run crowd itself: that takes Go alone.
set -eu

want=()
need() { # need COMMAND-OR-FILE PACKAGE WHAT
	if ! command -v "$1" >/dev/null 2>&1 && [ ! -e "$1" ]; then
		want+=("$2")
		why+=("  $2: $3")
	fi
}
why=()
need clang clang "C programs are not rebuilt or compared; the committed .wasm files are used"
need wasm-ld lld "as above"
need /usr/include/wasm32-wasi/stdio.h wasi-libc "as above"
need /usr/lib/llvm-14/lib/clang/14.0.6/lib/wasi/libclang_rt.builtins-wasm32.a libclang-rt-14-dev-wasm32 "as above"

if [ "${1:-}" = bench ]; then
	need cc gcc "no native programs to compare with: those figures fail"
	need boinc boinc-client "the agent at rest is compared with an older figure of BOINC's client"
fi

[ ${#want[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	echo "setup: installing ${want[*]}" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends "${want[@]}" >/dev/null && exit 0
	echo "setup: apt-get failed" >&2
fi
echo "setup: missing, so skipped here (no root or no apt):" >&2
printf '%s\n' "${why[@]}" >&2
