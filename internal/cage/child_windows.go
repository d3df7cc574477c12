package cage

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// systemState is the job object, which ends the child when the parent's handle to it goes, and keeps it single.
type systemState struct{ job windows.Handle }

func self() (string, error) { return os.Executable() }

func prepare(cmd *exec.Cmd, spec Spec) error {
	if spec.User != nil {
		return fmt.Errorf("run as another user: %w", errors.ErrUnsupported)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		HideWindow:    true,
		CreationFlags: windows.IDLE_PRIORITY_CLASS | windows.CREATE_NEW_PROCESS_GROUP | windows.CREATE_NO_WINDOW,
	}
	return nil
}

// started puts the child in its job. It waits for its first input by then, so it has done nothing yet.
func (c *Child) started() error {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return fmt.Errorf("create a job object: %w", err)
	}
	limits := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{
		BasicLimitInformation: windows.JOBOBJECT_BASIC_LIMIT_INFORMATION{
			LimitFlags:         windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | windows.JOB_OBJECT_LIMIT_ACTIVE_PROCESS,
			ActiveProcessLimit: 1,
		},
	}
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits)))
	if err == nil {
		err = c.withProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, func(p windows.Handle) error {
			return windows.AssignProcessToJobObject(job, p)
		})
	}
	if err != nil {
		windows.CloseHandle(job)
		return fmt.Errorf("put the child in a job object: %w", err)
	}
	c.system.job = job
	return nil
}

func (c *Child) release() { windows.CloseHandle(c.system.job) }

func (c *Child) withProcess(access uint32, use func(windows.Handle) error) error {
	p, err := windows.OpenProcess(access, false, uint32(c.Pid()))
	if err != nil {
		return err
	}
	defer windows.CloseHandle(p)
	return use(p)
}

func waitable(int) {}

func maxRSS(*os.ProcessState) int64 { return 0 }

func (c *Child) kill() error {
	if err := c.cmd.Process.Kill(); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (c *Child) freeze() error { return fmt.Errorf("freeze a process: %w", errors.ErrUnsupported) }
func (c *Child) thaw() error   { return fmt.Errorf("thaw a process: %w", errors.ErrUnsupported) }

func (c *Child) usage() (u Usage, err error) {
	err = c.withProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, func(p windows.Handle) error {
		var created, exited, kernel, user windows.Filetime
		if err := windows.GetProcessTimes(p, &created, &exited, &kernel, &user); err != nil {
			return err
		}
		ticks := func(f windows.Filetime) int64 { return int64(f.HighDateTime)<<32 | int64(f.LowDateTime) }
		u.CPU = time.Duration(ticks(kernel)+ticks(user)) * 100
		return nil
	})
	return u, err
}
