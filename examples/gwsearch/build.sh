#!/bin/sh
# Builds search.wasm (or the file named) from search.c. The committed one came from Debian clang version 14.0.6 with
# wasi-libc 0.0~git20220510 (apt install clang lld wasi-libc libclang-rt-dev-wasm32); the same compiler gives the same
# bytes. No fast-math: every engine must print the same result. No SIMD: it gains nothing here (measured), and without
# it every engine and tool takes the program.
# The memory asked for at the start is what 32 s of strain need: growing it would copy it. Compiled and linked in two
# steps, because clang hands an optimised link to whatever wasm-opt it finds and the result would depend on that.
set -eu
cd "$(dirname "$0")"
object=$(mktemp)
trap 'rm -f "$object"' EXIT
"${CLANG:-clang}" --target=wasm32-wasi -std=c11 -O3 -ffp-contract=off -Wall -Wextra -Werror -c search.c -o "$object"
"${CLANG:-clang}" --target=wasm32-wasi -Wl,--strip-all -Wl,--initial-memory=8388608 "$object" -o "${1:-search.wasm}"
