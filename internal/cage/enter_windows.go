package cage

import (
	"errors"

	"golang.org/x/sys/windows"
)

func enter(r *Report, _ Rules) error {
	r.add(Descriptors, "the parent passes only stdin, stdout and stderr on", nil)
	class, err := windows.GetPriorityClass(windows.CurrentProcess())
	if err == nil && class != windows.IDLE_PRIORITY_CLASS {
		err = errors.New("the parent did not start it with the priority class idle")
	}
	r.add(Priority, "priority class idle", err)
	r.lacks("not set on Windows; the memory of a guest is limited by its engine alone", Rlimits)
	r.lacks("Windows has no such means for a plain process, so a guest that broke out of wasm has the rights of this user",
		NoNewPrivs, Capabilities, Landlock, Seccomp, NonDumpable)
	return nil
}

func harden(r *Report) {
	r.lacks("Windows lets other programs of the same user read the memory of a plain process", NonDumpable)
}
