package wasm

import (
	"errors"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/crowdcloud/crowd"
)

// checkName accepts a relative slash path of a file: clean, not too long or deep, without control characters.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../"):
		return errors.New("not a clean relative path")
	case len(name) > crowd.Limits.PathBytes || strings.Count(name, "/") >= crowd.Limits.PathDepth:
		return errors.New("too long or too deep")
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }):
		return errors.New("has characters that names may not have")
	}
	return nil
}
