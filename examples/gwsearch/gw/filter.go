package gw

import (
	"math"
	"math/bits"
	"math/cmplx"
	"slices"
)

const (
	bandLow, bandHigh = 30, 1000 // Hz
	segment           = 4        // s, of one periodogram
	taper             = 0.5      // s, faded at the ends of the strain
	sun               = 4.925490947641267e-6
)

// Series is the signal-to-noise ratio of one template over time, one value per strain sample; a value's time is when
// a merger would have reached that detector.
type Series struct {
	H1, L1 []float64
	Rate   float64 // Hz
	Start  float64 // GPS seconds
}

// Filter runs the matched filter of one template over both detectors: B. Allen et al., Phys. Rev. D 85, 122006 (2012).
// The first and last seconds are spoilt by the ends of the strain.
func (s Strain) Filter(chirpMass, massRatio float64) Series {
	w := newWave(chirpMass, massRatio)
	return Series{H1: filter(s.H1, s.Rate, w), L1: filter(s.L1, s.Rate, w), Rate: s.Rate, Start: s.Start}
}

func filter(x []float64, rate float64, w wave) []float64 {
	noise := Spectrum(x, rate)
	n := 1 << bits.Len(uint(len(x)-1))
	z := make([]complex128, n)
	fade := int(taper * rate)
	for i, v := range x {
		if end := min(i, len(x)-1-i); end < fade {
			v *= 0.5 - 0.5*math.Cos(math.Pi*(float64(end)+0.5)/float64(fade))
		}
		z[i] = complex(v, 0)
	}
	FFT(z)
	df := rate / float64(n)
	var norm float64
	for k := range z {
		f := float64(k) * df
		if f < bandLow || f > bandHigh || f > w.cut || f > 0.48*rate {
			z[k] = 0
			continue
		}
		at := f * segment
		i := int(at)
		density := noise[i] + (at-float64(i))*(noise[i+1]-noise[i])
		h := w.at(f)
		norm += (real(h)*real(h) + imag(h)*imag(h)) / density
		z[k] = cmplx.Conj(z[k] * cmplx.Conj(h) / complex(density, 0))
	}
	FFT(z) // of the conjugate: an inverse transform, but for a conjugate that the modulus drops
	scale := math.Sqrt(4*df/norm) / rate
	snr := make([]float64, len(x))
	for i := range snr {
		snr[i] = scale * cmplx.Abs(z[i])
	}
	return snr
}

// Spectrum estimates the one-sided noise density of x in 1/Hz at multiples of 1/4 Hz, up to half the rate: Welch's
// method with Hann windows of 4 s, half overlapping, and their median, corrected for its bias. x holds at least 4 s.
func Spectrum(x []float64, rate float64) []float64 {
	n := segment * int(rate)
	window := make([]float64, n)
	var power float64
	for i := range window {
		window[i] = 0.5 - 0.5*math.Cos(2*math.Pi*float64(i)/float64(n))
		power += window[i] * window[i]
	}
	periodograms := make([][]float64, n/2+1)
	z := make([]complex128, n)
	for start := 0; start+n <= len(x); start += n / 2 {
		for i := range z {
			z[i] = complex(x[start+i]*window[i], 0)
		}
		FFT(z)
		for k := range periodograms {
			a := cmplx.Abs(z[k])
			periodograms[k] = append(periodograms[k], a*a)
		}
	}
	density := make([]float64, len(periodograms))
	for k, p := range periodograms {
		slices.Sort(p)
		m := len(p)
		density[k] = (p[(m-1)/2] + p[m/2]) / 2 * 2 / (rate * power) / medianBias(m)
	}
	return density
}

// medianBias is the expected median of n exponential variates of mean one.
func medianBias(n int) float64 {
	var sum float64
	for i := n/2 + 1; i <= n; i++ {
		sum += 1 / float64(i)
	}
	if n%2 == 0 {
		sum += 1 / float64(n)
	}
	return sum
}

// FFT replaces x by its discrete Fourier transform, sum over i of x[i] exp(-2 pi i k/n), unscaled. Its length is a
// power of two.
func FFT(x []complex128) {
	n := len(x)
	if n < 2 {
		return
	}
	shift := 64 - bits.Len(uint(n-1))
	for i := range x {
		if j := int(bits.Reverse64(uint64(i)) >> shift); j > i {
			x[i], x[j] = x[j], x[i]
		}
	}
	turn := make([]complex128, n/2)
	for k := range turn {
		sin, cos := math.Sincos(2 * math.Pi * float64(k) / float64(n))
		turn[k] = complex(cos, -sin)
	}
	for half := 1; half < n; half *= 2 {
		for start := 0; start < n; start += 2 * half {
			for k := range half {
				a, b := x[start+k], x[start+k+half]*turn[k*(n/2/half)]
				x[start+k], x[start+k+half] = a+b, a-b
			}
		}
	}
}

// wave is IMRPhenomB without spin: inspiral, merger and ringdown of two black holes in the frequency domain.
// P. Ajith et al., Phys. Rev. Lett. 106, 241101 (2011), arXiv:0909.2867, equations 1 and 2, table I at chi = 0.
type wave struct {
	mass                    float64 // total, seconds
	merge, ring, width, cut float64 // Hz
	amp2                    float64
	mid, tail               float64    // make the amplitude continuous
	psi                     [9]float64 // of the phase, by power of v, times v^-5
	delay                   float64    // seconds, of the ringdown frequency: the merger is put at 0
}

func newWave(chirpMass, massRatio float64) wave {
	n := massRatio / ((1 + massRatio) * (1 + massRatio))
	poly := func(c0, c1, c2, c3 float64) float64 { return c0 + n*(c1+n*(c2+n*c3)) }
	w := wave{mass: chirpMass * sun / math.Pow(n, 0.6), amp2: -323./224 + 451./168*n}
	unit := 1 / (math.Pi * w.mass)
	w.merge = unit * poly(1-4.4547+3.521, 0.64365, -0.058218, -7.0916)
	w.ring = unit * poly(0.37/2, 0.14690, -0.024900, 2.3252)
	w.width = unit * poly(0.37/4, -0.40979, 1.8286, -2.8698)
	w.cut = unit * poly(0.32361, -0.13313, -0.27140, 4.9220)
	w.mid = w.inspiral(w.merge) / w.merger(w.merge)
	w.tail = w.mid * w.merger(w.ring) / w.ringdown(w.ring)
	lead := 3 / (128 * n)
	w.psi = [9]float64{
		0: lead,
		2: lead * poly(3715./756, -920.91, 6741.9, -13397),
		3: lead * poly(-16*math.Pi, 17022, -121370, 238590),
		4: lead * poly(15293365./508032, -125440, 873540, -1693600),
		6: lead * poly(0, -889770, 5980800, -11280000),
		7: lead * poly(0, 869600, -5837900, 10891000),
		8: lead * poly(0, -366000, 2426500, -4552400),
	}
	v := w.speed(w.ring)
	for j, c := range w.psi {
		w.delay += c * float64(j-5) / 3 * math.Pow(v, float64(j-5)) / (2 * math.Pi * w.ring)
	}
	return w
}

// at is the waveform's transform at f Hz, of any scale.
func (w wave) at(f float64) complex128 {
	v := w.speed(f)
	phase := -2 * math.Pi * f * w.delay
	for j, c := range w.psi {
		phase += c * math.Pow(v, float64(j-5))
	}
	amp := w.inspiral(f)
	switch {
	case f >= w.ring:
		amp = w.tail * w.ringdown(f)
	case f >= w.merge:
		amp = w.mid * w.merger(f)
	}
	return cmplx.Rect(amp, -phase)
}

func (w wave) speed(f float64) float64 { return math.Cbrt(math.Pi * w.mass * f) }

func (w wave) inspiral(f float64) float64 {
	v := w.speed(f)
	return math.Pow(f/w.merge, -7./6) * (1 + w.amp2*v*v)
}

func (w wave) merger(f float64) float64 {
	v := w.speed(f)
	return math.Pow(f/w.merge, -2./3) * (1 - 1.8897*v + 1.6557*v*v)
}

func (w wave) ringdown(f float64) float64 {
	d := f - w.ring
	return w.width / (2 * math.Pi) / (d*d + w.width*w.width/4)
}
