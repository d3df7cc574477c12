//go:build !windows

package seal

// modesTell reports whether a file's mode says who can read it.
const modesTell = true
