package broker

import (
	"fmt"
	"slices"
	"time"

	"github.com/crowdcloud/crowd"
)

// checkSpec says every fault of an order.
func checkSpec(s *crowd.JobSpec) error {
	if faults := s.Check(); len(faults) > 0 {
		return invalid(faults)
	}
	return nil
}

// checkItem holds one unit's file to what an input may be.
func checkItem(s *crowd.JobSpec, in crowd.Input, line int) error {
	if in.Size < 0 || in.Size > crowd.Limits.BlobBytes {
		return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "units.items: line %d: a file has at most %s", line, crowd.FormatSize(crowd.Limits.BlobBytes))
	}
	if _, err := crowd.CleanName(in.As); err != nil {
		return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "units.items: line %d: %w", line, err)
	}
	if slices.ContainsFunc(s.Inputs, func(x crowd.Input) bool { return x.As == in.As }) {
		return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "units.items: line %d: %q is the name of an input already", line, in.As)
	}
	return nil
}

// deadlineOf is when an order ends at the latest; zero: never.
func deadlineOf(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := crowd.ParseDeadline(s, now)
	if err != nil {
		return t, invalid([]crowd.Fault{{Path: "deadline", Text: crowd.AsError(err).Message}})
	}
	if !t.After(now) {
		return t, invalid([]crowd.Fault{{Path: "deadline", Text: "it has passed already"}})
	}
	return t.UTC(), nil
}

// checkName refuses what isn't a thing's name: a-z 0-9 and inner dashes.
func checkName(path, s string) error {
	ok := s != "" && len(s) <= crowd.Limits.NameBytes && s[0] != '-' && s[len(s)-1] != '-'
	for _, r := range s {
		ok = ok && (r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	}
	if !ok {
		return invalid([]crowd.Fault{{Path: path, Text: fmt.Sprintf("wanted 1 to %d of a-z, 0-9 and inner dashes, found %q", crowd.Limits.NameBytes, clipText(s))}})
	}
	return nil
}

// invalid is the error of a request with faults.
func invalid(faults []crowd.Fault) *crowd.Error {
	e := crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "%s: %s", faults[0].Path, faults[0].Text)
	if n := len(faults); n > 1 {
		e.Message = fmt.Sprintf("%d faults, nothing ordered; the first: %s", n, e.Message)
	}
	e.Faults, e.Hint = faults, faults[0].Hint
	return e
}
