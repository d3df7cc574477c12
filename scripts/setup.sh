#!/usr/bin/env bash
# Installs what the tests and the demo use and this machine lacks. Root on Debian: by apt. Else it says what will be skipped and why.
# Nothing here is needed to build or run crowd itself: that takes Go alone.
set -eu
cd "$(dirname "$0")/.."

want=()
need() { # need COMMAND-OR-FILE PACKAGE WHAT
	if ! command -v "$1" >/dev/null 2>&1 && [ ! -e "$1" ]; then
		want+=("$2")
		why+=("  $2: $3")
	fi
}
why=()
need ip iproute2 "a cut network isn't tried"
need clang clang "C programs are not rebuilt or compared; the committed .wasm files are used"
need wasm-ld lld "as above"
need /usr/include/wasm32-wasi/stdio.h wasi-libc "as above"
need /usr/lib/llvm-14/lib/clang/14.0.6/lib/wasi/libclang_rt.builtins-wasm32.a libclang-rt-14-dev-wasm32 "as above"
need dbus-daemon dbus-daemon "how the agent learns that the machine goes to sleep is not tested"

if [ "${1:-}" = bench ]; then
	need cc gcc "no native programs to compare with: those figures fail"
	need boinc boinc-client "the agent at rest is compared with an older figure of BOINC's client"
fi

# The kernel of the virtual machine that `soak` runs an agent in: unpacked, not installed, so that this machine starts as before.
vm=out/vm
kernel() {
	[ -e $vm ] || unpack || { [ "$(id -u)" = 0 ] && apt-get update -qq >/dev/null 2>&1 && unpack; } ||
		echo "setup: can't have Debian's linux-image-cloud-amd64: tests of an agent in a virtual machine are skipped" >&2
}
unpack() {
	local name new
	new=$(mktemp -d)
	name=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -n 1)
	if [ -n "$name" ] && (cd "$new" && apt-get -qq download "$name" >/dev/null 2>&1) &&
		dpkg-deb --fsys-tarfile "$new"/*.deb | tar -x -C "$new" --wildcards '*/boot/vmlinuz-*' '*/kernel/drivers/virtio/*' '*/virtio_net.ko*' '*failover.ko*' &&
		find "$new" -name '*.ko.xz' -exec unxz {} + && rm "$new"/*.deb && mkdir -p out && mv "$new" $vm; then
		return 0
	fi
	rm -rf "$new"
	return 1
}
if [ "${1:-}" = soak ]; then
	need qemu-system-x86_64 qemu-system-x86 "no virtual machine: tests of an agent that sleeps, and of one restored twice, are skipped"
	trap kernel EXIT # after the packages
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
