package sense

import (
	"context"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// systemd-logind, and what replaces it elsewhere (elogind), on the system's bus. See org.freedesktop.login1(5).
const (
	login       = "org.freedesktop.login1"
	loginPath   = dbus.ObjectPath("/org/freedesktop/login1")
	manager     = "org.freedesktop.login1.Manager"
	prepare     = "PrepareForSleep"
	answerWait  = 5 * time.Second // for one answer
	delayedName = "InhibitDelayMaxUSec"
)

// Sleep follows the machine's sleep until ctx ends (nil), or nobody is there, or any more, to say it (Unavailable). While it runs it holds a lock that
// makes the system wait for Before.
func Sleep(ctx context.Context, o SleepOptions) error {
	l, err := connect(ctx, o.Bus)
	if err != nil {
		return err
	}
	defer l.close()
	signals := make(chan *dbus.Signal, 16)
	l.conn.Signal(signals)
	match := []dbus.MatchOption{dbus.WithMatchSender(login), dbus.WithMatchObjectPath(loginPath), dbus.WithMatchInterface(manager), dbus.WithMatchMember(prepare)}
	if err := l.conn.AddMatchSignalContext(ctx, match...); err != nil {
		return nobody("%w", err)
	}
	if err := l.inhibit(ctx); err != nil && !l.there(ctx) {
		return nobody("%w", err) // else without the lock: better than nothing
	}
	asleep := false
	defer func() {
		if asleep {
			o.After()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, ok := <-signals:
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return nobody("the bus is gone")
			}
			begins, ok := l.says(ctx, s)
			switch {
			case !ok || begins == asleep:
			case begins:
				asleep = true
				o.Before()
				l.release()
			default:
				asleep = false
				o.After()
				_ = l.inhibit(ctx)
			}
		}
	}
}

// CheckSleep says how long the system at most waits before it sleeps, or why nobody is there to say it.
func CheckSleep(ctx context.Context, bus string) (time.Duration, error) {
	l, err := connect(ctx, bus)
	if err != nil {
		return 0, err
	}
	defer l.close()
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	var most dbus.Variant
	get := l.conn.Object(login, loginPath).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, manager, delayedName)
	if err := get.Store(&most); err != nil {
		return 0, nobody("%w", err)
	}
	us, _ := most.Value().(uint64)
	if err := l.inhibit(ctx); err != nil {
		return 0, nobody("it won't wait for this user: %w", err)
	}
	return time.Duration(us) * time.Microsecond, nil
}

// logind is a connection to it, and the lock if it is held.
type logind struct {
	conn *dbus.Conn
	lock *os.File
}

func connect(ctx context.Context, bus string) (*logind, error) {
	opts := []dbus.ConnOption{dbus.WithContext(ctx), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler())}
	dial := func() (*dbus.Conn, error) { return dbus.ConnectSystemBus(opts...) }
	if bus != "" {
		dial = func() (*dbus.Conn, error) { return dbus.Connect(bus, opts...) }
	}
	c, err := dial()
	if err != nil {
		return nil, nobody("%w", err)
	}
	return &logind{conn: c}, nil
}

func (l *logind) close() {
	l.release()
	_ = l.conn.Close()
}

// inhibit takes the lock: the system waits with its sleep until it is released.
func (l *logind) inhibit(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	var fd dbus.UnixFD
	call := l.conn.Object(login, loginPath).CallWithContext(ctx, manager+".Inhibit", 0, "sleep", "crowd", "guests stop and their work goes elsewhere", "delay")
	if err := call.Store(&fd); err != nil {
		return err
	}
	unix.CloseOnExec(int(fd))
	l.release()
	l.lock = os.NewFile(uintptr(fd), "sleep inhibitor")
	return nil
}

func (l *logind) release() {
	if l.lock != nil {
		_ = l.lock.Close()
		l.lock = nil
	}
}

func (l *logind) owner(ctx context.Context) (name string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	err = l.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, login).Store(&name)
	return name, err
}

func (l *logind) there(ctx context.Context) bool {
	_, err := l.owner(ctx)
	return err == nil
}

// says reads a signal: whether sleep begins, or ends. Anybody on the bus can send us one: only logind's counts.
func (l *logind) says(ctx context.Context, s *dbus.Signal) (begins, ok bool) {
	if s.Name != manager+"."+prepare || s.Path != loginPath || len(s.Body) != 1 {
		return false, false
	}
	begins, ok = s.Body[0].(bool)
	if !ok {
		return false, false
	}
	owner, err := l.owner(ctx)
	return begins, err == nil && owner == s.Sender
}
