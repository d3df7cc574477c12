// clang --target=wasm32-wasi -O2 -Wl,--strip-all -o noop.wasm noop.c
#include <stdio.h>
int main(int n, char **v) {
    if (n > 1) puts(v[1]);
    return 0;
}
