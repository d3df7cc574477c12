package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

const (
	event  = "800 1126259462.428223 30.9448 1.00 19.199 13.032 23.204\n"
	quiet  = "0 1126259467.018066 8.0270 1.00 4.647 3.232 5.660\n"
	glitch = "3 1126259450.000000 12.0000 1.50 60.000 4.100 60.140\n"
)

func TestReport(t *testing.T) {
	plot := filepath.Join(t.TempDir(), "snr.png")
	for _, c := range []struct {
		name, lines    string
		args           []string
		status         int
		stdout, stderr string
	}{
		{"found", quiet + event + glitch, nil, 0,
			"event    GPS 1126259462.43, chirp mass 30.9 suns, snr H1 19.2, L1 13.0, both 23.2\n", ""},
		{"plotted", event, []string{"--data", "../data", "--plot", plot}, 0,
			"event    GPS 1126259462.43, chirp mass 30.9 suns, snr H1 19.2, L1 13.0, both 23.2\nplot     " + plot + "\n", ""},
		{"quiet", quiet, nil, 8, "", "report: nothing found: the loudest of 1 templates has snr H1 4.6, L1 3.2, both 5.7\n"},
		{"one detector", glitch, nil, 8, "", "report: nothing found"},
		{"empty", "", nil, 8, "", "report: nothing found"},
		{"no line", event + "800 1126259462.4\n", nil, 2, "", "report: line 2: wanted unit"},
		{"no number", strings.Replace(event, "13.032", "loud", 1), nil, 2, "", "report: line 1: column 6: wanted a number"},
		{"no data", event, []string{"--data", "nowhere"}, 1, "event", "report: open nowhere/meta.json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			status := run(c.args, strings.NewReader(c.lines), &stdout, &stderr)
			if status != c.status {
				t.Errorf("exit %d, wanted %d", status, c.status)
			}
			if status == 0 && stdout.String() != c.stdout || !strings.HasPrefix(stdout.String(), c.stdout) {
				t.Errorf("stdout %q, wanted %q", stdout.String(), c.stdout)
			}
			if !strings.HasPrefix(stderr.String(), c.stderr) {
				t.Errorf("stderr %q, wanted %q", stderr.String(), c.stderr)
			}
		})
	}
}
