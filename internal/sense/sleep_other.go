//go:build !linux

package sense

import (
	"context"
	"time"
)

// Sleep isn't there on this system: it returns an error with ErrNever at once.
func Sleep(context.Context, SleepOptions) error { return nobody("%w", ErrNever) }

// CheckSleep isn't there on this system.
func CheckSleep(context.Context, string) (time.Duration, error) { return 0, nobody("%w", ErrNever) }
