// Something of everything that the rewrite touches: loops, recursion, calls through a table, bulk moves, floats.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t fib(uint32_t n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
static int by_value(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

int main(int argc, char **argv) {
	int n = argc > 1 ? atoi(argv[1]) : 1000, *v = malloc(n * sizeof *v);
	uint32_t x = 1;
	for (int i = 0; i < n; i++) v[i] = (x = x * 1664525 + 1013904223) >> 8;
	qsort(v, n, sizeof *v, by_value);
	char *big = malloc(1 << 20);
	memset(big, n, 1 << 20);
	memcpy(big, v, n * sizeof *v);
	double sum = 0;
	for (int i = 0; i < n; i++) sum += sqrt(v[i]) / (1 + i);
	volatile double zero = 0;
	double nan = zero / zero;
	uint64_t bits;
	memcpy(&bits, &nan, 8);
	for (int c; (c = getchar()) != EOF;) x = x * 31 + c;
	printf("%u %d %d %.17g %016llx %u\n", fib(12), v[0], big[n], sum, (unsigned long long)bits, x);
	return 0;
}
