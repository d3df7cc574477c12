// What the tests run: probe MODE [ARG…].
// clang --target=wasm32-wasi -O2 -Wl,--strip-all -o probe.wasm probe.c
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static char *volatile kept; // or the compiler leaves out what nobody looks at

static int hello(int n, char **v) {
    for (int i = 0; i < n; i++) printf("%s\n", v[i]);
    for (char **e = environ; e && *e; e++) printf("%s\n", *e);
    fprintf(stderr, "to stderr\n");
    return 0;
}

static int copy(const char *from, const char *to) {
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    if (!in || !out) { perror("fopen"); return 1; }
    static char buf[50000];
    size_t n;
    while ((n = fread(buf, 1, sizeof buf, in)) > 0)
        if (fwrite(buf, 1, n, out) != n) { perror("fwrite"); return 1; }
    return fclose(in) | fclose(out);
}

static void tree(const char *path, int depth) {
    DIR *d = opendir(path);
    if (!d) { printf("%s: %s\n", path, strerror(errno)); return; }
    struct dirent *e;
    while ((e = readdir(d))) {
        char sub[600];
        struct stat st;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(sub, sizeof sub, "%s/%s", path, e->d_name);
        if (stat(sub, &st)) { perror(sub); continue; }
        printf("%s %lld %d\n", sub, (long long)st.st_size, S_ISDIR(st.st_mode));
        if (S_ISDIR(st.st_mode)) tree(sub, depth + 1);
    }
    closedir(d);
}

static int files(void) {
#define try(x) do { errno = 0; long long r = (x); printf("%s: %lld %s\n", #x, r, r < 0 ? strerror(errno) : ""); } while (0)
    try(mkdir("/out/d", 0755));
    try(mkdir("/out/d", 0755));
    try(mkdir("/new", 0755));
    try(mkdir("/in/new", 0755));
    try(open("/in/a", O_RDWR));
    try(open("/nowhere", O_RDONLY));
    try(open("../../etc/passwd", O_RDONLY));
    try(open("/out/../../../etc/passwd", O_RDONLY));
    int fd = open("out/d/f", O_CREAT | O_RDWR | O_TRUNC, 0644);
    printf("fd %d\n", fd);
    try(write(fd, "hello world", 11));
    try(lseek(fd, 100000, SEEK_SET));
    try(write(fd, "far", 3));
    try(lseek(fd, -5, SEEK_END));
    char b[9] = {0};
    try(read(fd, b, 8));
    printf("%d %d %s\n", b[0], b[1], b + 2);
    try(ftruncate(fd, 5));
    try(pread(fd, b, 8, 1));
    printf("%s\n", b);
    try(rename("/out/d/f", "/out/g"));
    try(rename("/out/g", "/state/g"));
    try(rename("/out/d", "/out/d/e"));
    try(rmdir("/out/d"));
    try(rmdir("/out"));
    try(unlink("/out/g"));
    try(write(fd, "still there", 11));
    try(close(fd));
    try(close(fd));
    try(symlink("/in/a", "/out/l"));
    try(isatty(1));
    fd = open("/state/log", O_CREAT | O_WRONLY | O_APPEND, 0644);
    try(write(fd, "one", 3));
    try(lseek(fd, 0, SEEK_SET));
    try(write(fd, "two", 3));
    try(lseek(fd, 0, SEEK_CUR));
    int many = 0;
    while (open("/state/log", O_RDONLY) >= 0) many++;
    printf("%d more: %s\n", many, strerror(errno));
    tree("", 0);
    return 0;
}

static int clocks(void) {
    struct timespec t;
    unsigned char r[40];
    clock_gettime(CLOCK_REALTIME, &t);
    printf("%lld.%09ld\n", (long long)t.tv_sec, t.tv_nsec);
    clock_gettime(CLOCK_MONOTONIC, &t);
    printf("%lld.%09ld\n", (long long)t.tv_sec, t.tv_nsec);
    sleep(3600);
    clock_gettime(CLOCK_MONOTONIC, &t);
    printf("%lld.%09ld\n", (long long)t.tv_sec, t.tv_nsec);
    getentropy(r, sizeof r);
    for (int i = 0; i < (int)sizeof r; i++) printf("%02x", r[i]);
    printf("\n");
    return 0;
}

static int deep(int n);
static int (*volatile deeper)(int) = deep;
static int deep(int n) { return deeper(n + 1) + n; } // no stack in memory

int main(int n, char **v) {
    const char *mode = n > 1 ? v[1] : "";
    if (!strcmp(mode, "hello")) return hello(n, v);
    if (!strcmp(mode, "copy")) return copy(v[2], v[3]);
    if (!strcmp(mode, "exit")) { puts("bye"); return atoi(v[2]); }
    if (!strcmp(mode, "files")) return files();
    if (!strcmp(mode, "clocks")) return clocks();
    if (!strcmp(mode, "tree")) { tree(v[2], 0); return 0; }
    if (!strcmp(mode, "stdin")) { printf("%d\n", getchar()); return 0; }
    if (!strcmp(mode, "loop")) for (volatile unsigned i = 0;; i++);
    if (!strcmp(mode, "count")) { volatile unsigned i = 0; while (i < (unsigned)atoi(v[2])) i++; printf("%u\n", i); return 0; }
    if (!strcmp(mode, "deep")) { puts("before"); fflush(stdout); return deep(n); }
    if (!strcmp(mode, "trap")) { puts("before"); fflush(stdout); __builtin_trap(); }
    if (!strcmp(mode, "bomb")) {
        for (;;) {
            char *p = kept = malloc(1 << 20);
            if (!p) abort();
            memset(p, 1, 1 << 20);
        }
    }
    if (!strcmp(mode, "refused")) { kept = malloc(1 << 30); printf("%d\n", kept == NULL); return n > 2 ? atoi(v[2]) : 0; }
    if (!strcmp(mode, "flood")) for (;;) puts("all work and no play makes jack a dull boy");
    if (!strcmp(mode, "shout")) for (int i = 0; i < 10000; i++) fprintf(stderr, "all work and no play\n");
    if (!strcmp(mode, "fill")) {
        FILE *f = fopen(v[2], "wb");
        static char buf[1 << 16];
        while (fwrite(buf, 1, sizeof buf, f) > 0);
        return 1;
    }
    if (!strcmp(mode, "peek")) {
        unsigned char b[8];
        int fd = open(v[2], O_RDONLY);
        printf("%d\n", (int)pread(fd, b, 8, atoll(v[3])));
        for (int i = 0; i < 8; i++) printf("%02x", b[i]);
        return fd < 0;
    }
    if (!strcmp(mode, "state")) {
        FILE *f = fopen("/state/seen", "r");
        printf("%d\n", f != NULL);
        f = fopen("/state/seen", "w");
        return f == NULL;
    }
    for (int i = 0; i < n; i++) printf("%s%c", v[i], i < n - 1 ? ' ' : '\n');
    return 0;
}
