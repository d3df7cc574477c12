// spin UNIT ROUNDS: a program for tests that takes its time: it prints what a number has become after so many rounds.
// Built with: clang --target=wasm32-wasi -O2 -Wl,--strip-all spin.c -o spin.wasm (as examples/gwsearch/build.sh says)
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
	unsigned long long x = argc > 1 ? strtoull(argv[1], 0, 10) : 0;
	unsigned long long rounds = argc > 2 ? strtoull(argv[2], 0, 10) : 1;
	for (unsigned long long i = 0; i < rounds; i++)
		x = x * 6364136223846793005ull + 1442695040888963407ull;
	char text[17];
	for (int i = 15; i >= 0; i--, x >>= 4)
		text[i] = "0123456789abcdef"[x & 15];
	text[16] = '\n';
	write(1, text, sizeof text);
	return 0;
}
