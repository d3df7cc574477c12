package cage

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func enter(r *Report, rules Rules) error {
	set := func(what int, most int64) error {
		return unix.Setrlimit(what, &unix.Rlimit{Cur: uint64(most), Max: uint64(most)})
	}
	r.add(Rlimits, "no core dumps, few descriptors, files as the rules say; macOS has no useful limit of memory", errors.Join(
		set(unix.RLIMIT_CORE, 0),
		set(unix.RLIMIT_FSIZE, rules.FileBytes),
		set(unix.RLIMIT_NOFILE, 64),
	))
	r.add(Priority, "nice 20", idle(os.Getpid()))
	r.lacks("only what the parent opened without close-on-exec could have been inherited, which is not checked on macOS", Descriptors)
	r.lacks("macOS lets only signed app bundles confine themselves, so a guest that broke out of wasm has the rights of this user",
		NoNewPrivs, Capabilities, Landlock, Seccomp, NonDumpable)
	return nil
}

func harden(r *Report) {
	r.add(Rlimits, "no core dumps", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
	r.lacks("macOS protects only signed programs from attaching", NonDumpable)
}
