// Float arithmetic and little else: planets pulling at each other.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#define N 5
static double x[N] = {0, 4.84, 8.34, 12.89, 15.37}, y[N] = {0, -1.16, 4.12, -15.11, -25.91}, z[N] = {0, -.10, -.4, -.22, .17};
static double vx[N], vy[N] = {0, 2.8, 1.8, .87, .59}, vz[N], m[N] = {39.47, .037, .011, .0017, .002};

int main(int argc, char **argv) {
	for (int s = argc > 1 ? atoi(argv[1]) : 100; s > 0; s--) {
		for (int i = 0; i < N; i++)
			for (int j = i + 1; j < N; j++) {
				double dx = x[i] - x[j], dy = y[i] - y[j], dz = z[i] - z[j], d = dx * dx + dy * dy + dz * dz;
				double g = 1e-3 / (d * sqrt(d));
				vx[i] -= dx * m[j] * g, vy[i] -= dy * m[j] * g, vz[i] -= dz * m[j] * g;
				vx[j] += dx * m[i] * g, vy[j] += dy * m[i] * g, vz[j] += dz * m[i] * g;
			}
		for (int i = 0; i < N; i++) x[i] += 1e-3 * vx[i], y[i] += 1e-3 * vy[i], z[i] += 1e-3 * vz[i];
	}
	printf("%a %a %a\n", x[1], y[1], z[1]);
	return 0;
}
