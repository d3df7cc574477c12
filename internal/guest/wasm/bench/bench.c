// The program that measures a slot: integers, floats and memory in equal parts, the same on every host.
// clang --target=wasm32-wasi -O2 -nostdlib -Wl,--no-entry -Wl,--export=_start -o bench.wasm bench.c
#define N 65536

static unsigned table[N];
static volatile double sink;

static unsigned ints(unsigned x, int n) {
    for (int i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        if (x & 1) x += 0x9e3779b9u; else x = (x >> 3) * 7 + 1;
    }
    return x;
}

static double floats(double a, int n) {
    double s = 0;
    for (int i = 1; i <= n; i++) {
        a = a * 1.0000001 + 0.5 / i;
        s += a / (1 + s * s * 1e-9);
    }
    return s;
}

static unsigned memory(unsigned x, int n) {
    for (int i = 0; i < n; i++) {
        unsigned k = (x + table[(x >> 7) % N]) % N;
        table[k] += x;
        x = table[(k * 31 + i) % N] ^ (x * 1664525u + 1013904223u);
    }
    return x;
}

void _start(void) {
    unsigned x = 1;
    double d = 1;
    for (int i = 0; i < 16; i++) {
        x = ints(x, 900000);
        d = floats(1 + (x & 1023), 500000);
        x = memory(x, 600000);
        sink = d;
    }
    if (x == 0) __builtin_trap();
}
