// counter count N WORK counts in /state/count from where that stands up to N, with WORK turns of a loop for each, and writes N to stdout and to
// /out/result. /state/lives gets a line of each life: the time and a random number at its start; they go to stderr at the end.
// counter grow N writes N bytes to /state/big, then loops.  counter same writes the same to /state/same for ever.  counter name NAME makes
// /state/NAME, then loops.
// clang --target=wasm32-wasi -O2 -Wl,--strip-all -o counter.wasm counter.c
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int put(const char *path, long long v) {
    FILE *f = fopen(path, "w");
    return !f || fprintf(f, "%lld\n", v) < 0 || fclose(f);
}

static int count(long long to, long long work) {
    struct timespec t;
    unsigned long long r;
    long long n = 0;
    FILE *f = fopen("/state/lives", "a");
    clock_gettime(CLOCK_REALTIME, &t);
    getentropy(&r, sizeof r);
    if (!f || fprintf(f, "%lld.%09ld %016llx\n", (long long)t.tv_sec, t.tv_nsec, r) < 0 || fclose(f)) return 1;
    if ((f = fopen("/state/count", "r"))) {
        if (fscanf(f, "%lld", &n) != 1) return 2;
        fclose(f);
    }
    while (n < to) {
        for (volatile long long i = 0; i < work; i++);
        if (put("/state/count.new", ++n) || rename("/state/count.new", "/state/count")) return 3;
    }
    char line[100];
    f = fopen("/state/lives", "r");
    while (fgets(line, sizeof line, f)) fputs(line, stderr);
    printf("%lld\n", n);
    return put("/out/result", n);
}

int main(int n, char **v) {
    const char *mode = n > 1 ? v[1] : "";
    static char some[1 << 16];
    if (!strcmp(mode, "count") && n > 3) return count(atoll(v[2]), atoll(v[3]));
    if (!strcmp(mode, "grow")) {
        FILE *f = fopen("/state/big", "w");
        for (long long left = atoll(v[2]); left > 0; left -= sizeof some)
            if (fwrite(some, 1, left < (long long)sizeof some ? left : sizeof some, f) == 0) return 1;
        fclose(f);
        for (volatile unsigned i = 0;; i++);
    }
    if (!strcmp(mode, "same")) {
        if (put("/state/same", 7)) return 1;
        for (;;) {
            FILE *f = fopen("/state/same", "r+");
            if (!f || fputs("7\n", f) < 0 || fclose(f)) return 1;
        }
    }
    if (!strcmp(mode, "name")) {
        char path[600];
        snprintf(path, sizeof path, "/state/%s", v[2]);
        if (put(path, 1)) return 1;
        for (volatile unsigned i = 0;; i++);
    }
    return 9;
}
