// Package gw reads what the search program prints, decides whether it saw a merger, and draws it.
//
// The search runs as many units, one waveform template each, and every unit prints one line: a [Peak]. [Pick] chooses
// the event among them. [Strain.Filter] repeats the winner's matched filter in Go, at the full sample rate and sharing
// no code with the program, for the picture and as a second opinion.
package gw

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// What an event must reach. Twenty stretches of Gaussian noise with the detectors' spectrum stay below 8 over the whole
// bank; a signal that only one detector sees is a glitch.
const (
	MinNetwork  = 10.0
	MinDetector = 5.0
)

// SNR is a signal-to-noise ratio in each detector and of both: the root of the sum of squares.
type SNR struct {
	H1      float64 `json:"H1"`
	L1      float64 `json:"L1"`
	Network float64 `json:"network"`
}

// Peak is one unit's answer: the loudest moment of one template.
type Peak struct {
	Unit      int
	GPS       float64 // of the merger at H1, seconds
	ChirpMass float64 // suns, as the detector sees it (redshifted)
	MassRatio float64 // at least 1
	SNR       SNR
}

// Event is the merger found.
type Event struct {
	GPS       float64 `json:"gps"`
	ChirpMass float64 `json:"chirp_mass"`
	MassRatio float64 `json:"-"` // badly measured, so not reported; 0 is taken for 1
	SNR       SNR     `json:"snr"`
}

// String is the event on one line, as the report prints it.
func (e Event) String() string {
	return fmt.Sprintf("GPS %.2f, chirp mass %.1f suns, snr H1 %.1f, L1 %.1f, both %.1f",
		e.GPS, e.ChirpMass, e.SNR.H1, e.SNR.L1, e.SNR.Network)
}

// ReadPeaks reads units' lines in any order; empty lines are skipped. The error names the line that is none.
func ReadPeaks(r io.Reader) ([]Peak, error) {
	var peaks []Peak
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		p, err := parsePeak(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		peaks = append(peaks, p)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading peaks: %w", err)
	}
	return peaks, nil
}

func parsePeak(line string) (Peak, error) {
	fields := strings.Fields(line)
	if len(fields) != 7 {
		return Peak{}, fmt.Errorf("wanted unit, gps, chirp mass, mass ratio and three snr, found %q", line)
	}
	unit, err := strconv.Atoi(fields[0])
	if err != nil {
		return Peak{}, fmt.Errorf("unit: wanted a whole number, found %q", fields[0])
	}
	p := Peak{Unit: unit}
	for i, to := range []*float64{&p.GPS, &p.ChirpMass, &p.MassRatio, &p.SNR.H1, &p.SNR.L1, &p.SNR.Network} {
		if *to, err = strconv.ParseFloat(fields[i+1], 64); err != nil {
			return Peak{}, fmt.Errorf("column %d: wanted a number, found %q", i+2, fields[i+1])
		}
	}
	return p, nil
}

// Pick returns the loudest peak that both detectors saw, or the loudest of all if there is none, and whether it is an
// event: at least [MinDetector] in each detector and [MinNetwork] together. Without peaks it returns a zero event.
func Pick(peaks []Peak) (Event, bool) {
	var best Peak
	for _, p := range peaks {
		if p.seenByBoth() != best.seenByBoth() {
			if p.seenByBoth() {
				best = p
			}
			continue
		}
		if p.SNR.Network > best.SNR.Network {
			best = p
		}
	}
	found := best.seenByBoth() && best.SNR.Network >= MinNetwork
	return Event{GPS: best.GPS, ChirpMass: best.ChirpMass, MassRatio: best.MassRatio, SNR: best.SNR}, found
}

func (p Peak) seenByBoth() bool { return p.SNR.H1 >= MinDetector && p.SNR.L1 >= MinDetector }
