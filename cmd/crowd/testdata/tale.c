// tale UNIT [fail UNIT]: a program for tests. It prints a line, says another on stderr, leaves /out/tale.txt, and ends with 3 if told to.
// Built with: clang --target=wasm32-wasi -O2 -Wl,--strip-all tale.c -o tale.wasm (as examples/gwsearch/build.sh says)
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static void say(int fd, const char *a, const char *b) {
	write(fd, a, strlen(a));
	write(fd, b, strlen(b));
	write(fd, "\n", 1);
}

int main(int argc, char **argv) {
	const char *unit = argc > 1 ? argv[1] : "?";
	say(1, "unit ", unit);
	say(2, "told ", unit);
	int fd = open("/out/tale.txt", O_WRONLY | O_CREAT, 0644);
	if (fd >= 0) {
		say(fd, "tale of ", unit);
		close(fd);
	}
	if (argc > 3 && !strcmp(argv[2], "fail") && !strcmp(argv[3], unit))
		return 3;
	return 0;
}
