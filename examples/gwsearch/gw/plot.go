package gw

import (
	"bytes"
	"cmp"
	"fmt"
	"image/color"
	"math"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

const (
	around = 3.0  // s, either side of the event, of the upper panel
	near   = 0.06 // s, of the lower one
)

var (
	hanford    = color.RGBA{R: 0xc6, G: 0x2f, B: 0x2b, A: 0xff}
	livingston = color.RGBA{R: 0x1f, G: 0x6f, B: 0xb5, A: 0xff}
	faint      = color.RGBA{R: 0xe4, G: 0xe4, B: 0xe4, A: 0xff}
	ink        = color.RGBA{R: 0x33, G: 0x33, B: 0x33, A: 0xff}
)

// Plot writes a PNG of the event's signal-to-noise ratio against time in both detectors: above, how it stands out of
// the seconds around it; below, its peaks and the time the wave took from one detector to the other.
func Plot(data Strain, e Event, path string) error {
	series := data.Filter(e.ChirpMass, cmp.Or(e.MassRatio, 1))
	wide, err := panel(series, e, around, 1, "seconds")
	if err != nil {
		return fmt.Errorf("plotting: %w", err)
	}
	close, err := panel(series, e, near, 1000, "milliseconds")
	if err != nil {
		return fmt.Errorf("plotting: %w", err)
	}
	wide.Title.Text = fmt.Sprintf("Merger of two black holes at GPS %.2f, chirp mass %.1f suns", e.GPS, e.ChirpMass)
	wide.Legend.Top = true
	if err := mark(close, series, e); err != nil {
		return fmt.Errorf("plotting: %w", err)
	}

	canvas := vgimg.NewWith(vgimg.UseWH(9*vg.Inch, 7*vg.Inch), vgimg.UseDPI(144))
	tiles := draw.Tiles{Rows: 2, Cols: 1, PadX: vg.Millimeter, PadY: 6 * vg.Millimeter,
		PadTop: 4 * vg.Millimeter, PadBottom: 4 * vg.Millimeter, PadLeft: 4 * vg.Millimeter, PadRight: 6 * vg.Millimeter}
	panels := [][]*plot.Plot{{wide}, {close}}
	for row, canvases := range plot.Align(panels, tiles, draw.New(canvas)) {
		panels[row][0].Draw(canvases[0])
	}
	var png bytes.Buffer
	if _, err := (vgimg.PngCanvas{Canvas: canvas}).WriteTo(&png); err != nil {
		return fmt.Errorf("plotting: %w", err)
	}
	return os.WriteFile(path, png.Bytes(), 0o644)
}

// panel draws both detectors within span seconds of the event; scale turns seconds into the axis's unit.
func panel(s Series, e Event, span, scale float64, unit string) (*plot.Plot, error) {
	p := plot.New()
	p.X.Label.Text = fmt.Sprintf("%s from GPS %.3f", unit, e.GPS)
	p.Y.Label.Text = "signal-to-noise ratio"
	p.Title.TextStyle.Font.Size = 15
	p.Title.TextStyle.Font.Variant = "Sans"
	p.X.Tick.Marker = ticks(span * scale / 3)
	p.Y.Tick.Marker = ticks(5)
	p.Title.Padding = 3 * vg.Millimeter
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font.Size = 12
		axis.Tick.Label.Font.Size = 11
		axis.Label.TextStyle.Font.Variant, axis.Tick.Label.Font.Variant = "Sans", "Sans"
		axis.Label.TextStyle.Color, axis.Tick.Label.Color = ink, ink
		axis.Color, axis.Tick.Color = ink, ink
		axis.Padding = 0
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = faint, faint
	p.Add(grid)

	line := vg.Points(1.8)
	if span > 1 {
		line = vg.Points(0.8)
	}
	for _, d := range []struct {
		name  string
		snr   []float64
		color color.Color
	}{{"Hanford (H1)", s.H1, hanford}, {"Livingston (L1)", s.L1, livingston}} {
		l, err := plotter.NewLine(window(d.snr, s, e.GPS, span, scale))
		if err != nil {
			return nil, err
		}
		l.Color, l.Width = d.color, line
		p.Add(l)
		key := *l
		key.Width = vg.Points(2.5)
		p.Legend.Add(d.name, &key)
	}
	p.Legend.TextStyle.Font.Size = 11
	p.Legend.TextStyle.Font.Variant = "Sans"
	p.Legend.Padding = vg.Millimeter
	p.X.Min, p.X.Max = -span*scale, span*scale
	p.Y.Min, p.Y.Max = 0, 1.15*max(e.SNR.H1, e.SNR.L1)
	return p, nil
}

// ticks marks an axis at multiples of step, each labelled.
func ticks(step float64) plot.Ticker {
	return plot.TickerFunc(func(low, high float64) []plot.Tick {
		var marks []plot.Tick
		for k := math.Ceil(low / step); k*step <= high; k++ {
			marks = append(marks, plot.Tick{Value: k * step, Label: fmt.Sprintf("%g", math.Round(k*step*100)/100)})
		}
		return marks
	})
}

// window cuts the part of a series within span seconds of gps.
func window(snr []float64, s Series, gps, span, scale float64) plotter.XYs {
	first := max(0, int(math.Ceil((gps-span-s.Start)*s.Rate)))
	last := min(len(snr)-1, int((gps+span-s.Start)*s.Rate))
	var xy plotter.XYs
	for i := first; i <= last; i++ {
		xy = append(xy, plotter.XY{X: (s.Start + float64(i)/s.Rate - gps) * scale, Y: snr[i]})
	}
	return xy
}

// mark labels each detector's peak with its ratio and, for the second, how much earlier or later the wave came.
func mark(p *plot.Plot, s Series, e Event) error {
	const travel = 0.011 // s
	h, l := top(window(s.H1, s, e.GPS, 0.002, 1000)), top(window(s.L1, s, e.GPS, travel, 1000))
	when := "later"
	if l.X < h.X {
		when = "earlier"
	}
	for _, m := range []struct {
		at    plotter.XY
		text  string
		color color.Color
	}{
		{h, fmt.Sprintf("H1 %.1f", h.Y), hanford},
		{l, fmt.Sprintf("L1 %.1f, %.1f ms %s", l.Y, math.Abs(l.X-h.X), when), livingston},
	} {
		dot, err := plotter.NewScatter(plotter.XYs{m.at})
		if err != nil {
			return err
		}
		dot.Shape, dot.Radius, dot.Color = draw.CircleGlyph{}, vg.Points(4), m.color
		label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{m.at}, Labels: []string{m.text}})
		if err != nil {
			return err
		}
		label.TextStyle[0].Color, label.TextStyle[0].Font.Size = m.color, 13
		label.TextStyle[0].Font.Variant = "Sans"
		label.TextStyle[0].YAlign = draw.YCenter
		label.Offset = vg.Point{X: vg.Points(9)}
		if m.at.X < h.X {
			label.TextStyle[0].XAlign = draw.XRight
			label.Offset.X = -label.Offset.X
		}
		p.Add(dot, label)
	}
	p.Legend = plot.NewLegend()
	return nil
}

func top(xy plotter.XYs) plotter.XY {
	best := plotter.XY{Y: -1}
	for _, p := range xy {
		if p.Y > best.Y {
			best = p
		}
	}
	return best
}
