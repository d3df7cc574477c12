package gw

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
)

// Strain is what both detectors measured over the same time. H1 and L1 are equally long.
type Strain struct {
	H1, L1 []float64 // dimensionless
	Rate   float64   // Hz
	Start  float64   // GPS seconds of the first sample
}

// Meta is the part of meta.json that the search reads.
type Meta struct {
	SampleRate float64 `json:"sample_rate_hz"`
	GPSStart   float64 `json:"gps_start"`
}

// Load reads meta.json, H1.f64 and L1.f64 (raw little-endian float64) from a folder.
func Load(dir string) (Strain, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	if err != nil {
		return Strain{}, err
	}
	var m Meta
	if err := json.Unmarshal(raw, &m); err != nil {
		return Strain{}, fmt.Errorf("meta.json: %w", err)
	}
	if m.SampleRate != math.Trunc(m.SampleRate) || m.SampleRate < 512 || m.SampleRate > 1<<16 {
		return Strain{}, fmt.Errorf("meta.json: sample_rate_hz: wanted 512 to 65536, found %g", m.SampleRate)
	}
	s := Strain{Rate: m.SampleRate, Start: m.GPSStart}
	if s.H1, err = readSamples(filepath.Join(dir, "H1.f64")); err != nil {
		return Strain{}, err
	}
	if s.L1, err = readSamples(filepath.Join(dir, "L1.f64")); err != nil {
		return Strain{}, err
	}
	n := min(len(s.H1), len(s.L1))
	s.H1, s.L1 = s.H1[:n], s.L1[:n]
	if n < int(8*s.Rate) {
		return Strain{}, errors.New("wanted at least 8 s of strain of both detectors")
	}
	return s, nil
}

func readSamples(path string) ([]float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	x := make([]float64, info.Size()/8)
	if err := binary.Read(f, binary.LittleEndian, x); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return x, nil
}
