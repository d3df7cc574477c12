//go:build ignore

/*
 * gwsearch: looks for one binary-black-hole waveform in strain from two gravitational-wave detectors.
 *
 *   search --h1 FILE --l1 FILE --meta FILE --unit U --of N
 *
 * The files are raw little-endian float64 strain; meta.json holds sample_rate_hz and gps_start. Unit U of N is one
 * template of a bank of N (see bank). One line goes to stdout:
 *
 *   unit  gps  chirp_mass  mass_ratio  snr_h1  snr_l1  snr_network
 *
 * gps is when the merger reached H1, masses are in suns as the detector sees them (redshifted), and the three
 * signal-to-noise ratios are those of the loudest pair of peaks that one wave could have made, lowered where their
 * shape is not the template's (see weigh).
 * Exit status: 0 done, 1 cannot read or no memory, 2 wrong arguments or data this search does not fit.
 *
 * An ordinary C11 program (the first line only tells Go to pass over it): it builds for WASI and for any little-endian
 * machine. Each arithmetic step is an IEEE 754 double, in an order fixed by this file, so that every engine prints the
 * same bytes.
 */
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PI 3.14159265358979323846
#define SUN 4.925490947641267e-6 /* G M_sun / c^3, seconds */

enum {
	RATE = 2048,       /* Hz; faster strain is halved down to it */
	SEGMENT_S = 4,     /* s, of one periodogram of the noise spectrum */
	SHORTEST_S = 8,    /* s, of strain */
	LONGEST_S = 512,   /* s */
	HALF_TAPS = 16,    /* pairs of taps of the halving filter */
	RATIOS = 4,        /* mass ratios of the bank */
	BINS = 16,         /* of the shape test */
	TRIES = 40,        /* pairs of peaks that it looks at, at most */
	GAP = 32,          /* samples in a row that are the same: nothing was measured */
};

static const double BAND_LOW = 30, BAND_HIGH = 1000; /* Hz */
static const double MASS_LOW = 8, MASS_HIGH = 45;    /* chirp mass, suns */
static const double RATIO[RATIOS] = {1, 1.5, 2, 3};
static const double TAPER = 0.5;     /* s, faded in and out at the ends of the strain and at its gaps */
static const double EDGE = 2;        /* s at either end where no peak counts: the whitening filter rings into them */
static const double TRAVEL = 0.011;  /* s, light between Hanford and Livingston (10 ms) and one for rounding */
static const double APART = 0.05;    /* s, around a pair that was looked at, where no other is sought */
static const double MISMATCH = 0.1;  /* of chi-squared to squared ratio: what the bank's gaps may add */
static const double FLOOR = 5;       /* a pair in which both detectors reach it beats any pair that does not */

static void die(int status, const char *what, const char *detail)
{
	fprintf(stderr, "search: %s%s\n", what, detail);
	exit(status);
}

static void *room(size_t n, size_t size)
{
	void *p = calloc(n, size);
	if (!p)
		die(1, "out of memory", "");
	return p;
}

/* ---- arguments and files ---- */

struct args {
	const char *h1, *l1, *meta;
	long unit, of;
};

static long whole(const char *s, const char *flag)
{
	char *end;
	errno = 0;
	long n = strtol(s, &end, 10);
	if (errno || end == s || *end)
		die(2, flag, ": wanted a whole number");
	return n;
}

static struct args parse(int argc, char **argv)
{
	struct args a = {.unit = -1, .of = -1};
	for (int i = 1; i < argc; i += 2) {
		const char *flag = argv[i];
		if (i + 1 == argc)
			die(2, flag, ": wanted a value after it");
		const char *value = argv[i + 1];
		if (!strcmp(flag, "--h1"))
			a.h1 = value;
		else if (!strcmp(flag, "--l1"))
			a.l1 = value;
		else if (!strcmp(flag, "--meta"))
			a.meta = value;
		else if (!strcmp(flag, "--unit"))
			a.unit = whole(value, flag);
		else if (!strcmp(flag, "--of"))
			a.of = whole(value, flag);
		else
			die(2, "unknown argument ", flag);
	}
	if (!a.h1 || !a.l1 || !a.meta || a.of < 1 || a.unit < 0 || a.unit >= a.of)
		die(2, "usage: search --h1 FILE --l1 FILE --meta FILE --unit U --of N, with 0 <= U < N", "");
	return a;
}

/* number returns the number after "key": in a flat JSON object. */
static double number(const char *json, const char *key)
{
	char quoted[64];
	snprintf(quoted, sizeof quoted, "\"%s\"", key);
	const char *at = strstr(json, quoted);
	if (at) {
		at += strlen(quoted);
		at += strspn(at, " \t\r\n");
		if (*at++ == ':') {
			char *end;
			double v = strtod(at, &end);
			if (end != at && isfinite(v))
				return v;
		}
	}
	die(2, "meta: no number called ", key);
	return 0;
}

static void read_meta(const char *path, double *rate, double *start)
{
	char json[8192];
	FILE *f = fopen(path, "rb");
	if (!f)
		die(1, "cannot open ", path);
	size_t n = fread(json, 1, sizeof json - 1, f);
	if (ferror(f))
		die(1, "cannot read ", path);
	fclose(f);
	json[n] = 0;
	*rate = number(json, "sample_rate_hz");
	*start = number(json, "gps_start");
}

/* read_strain returns a file's samples, at most `most`; *n is how many. */
static double *read_strain(const char *path, size_t most, size_t *n)
{
	FILE *f = fopen(path, "rb");
	if (!f)
		die(1, "cannot open ", path);
	setvbuf(f, NULL, _IONBF, 0);
	long size = fseek(f, 0, SEEK_END) ? -1 : ftell(f);
	if (size < 0 || fseek(f, 0, SEEK_SET))
		die(1, "cannot read ", path);
	*n = (size_t)size / sizeof(double) < most ? (size_t)size / sizeof(double) : most;
	double *x = room(*n + 1, sizeof *x);
	if (fread(x, sizeof *x, *n, f) != *n)
		die(1, "cannot read ", path);
	fclose(f);
	for (size_t i = 0; i < *n; i++)
		if (!isfinite(x[i]))
			die(2, "a sample is not a number in ", path);
	return x;
}

/*
 * halve filters x with a half-band low pass (windowed sinc, no delay) and keeps every second sample. The passband's
 * droop near the new Nyquist frequency divides out: the noise spectrum is measured behind the same filter.
 */
static double *halve(double *x, size_t *n)
{
	size_t m = *n / 2;
	double tap[HALF_TAPS];
	for (int j = 0; j < HALF_TAPS; j++) {
		double hamming = 0.54 + 0.46 * cos(PI * (2 * j + 1) / (2 * HALF_TAPS));
		tap[j] = (j % 2 ? -1 : 1) / (PI * (2 * j + 1)) * hamming;
	}
	double *padded = room(m + 2 * HALF_TAPS, sizeof *padded);
	double *odd = padded + HALF_TAPS;
	for (size_t i = 0; i < m; i++)
		odd[i] = x[2 * i + 1];
	double *y = room(m, sizeof *y);
	for (size_t i = 0; i < m; i++) {
		double sum = 0.5 * x[2 * i];
		for (int j = 0; j < HALF_TAPS; j++)
			sum += tap[j] * (odd[(ptrdiff_t)i + j] + odd[(ptrdiff_t)i - 1 - j]);
		y[i] = sum;
	}
	free(padded);
	free(x);
	*n = m;
	return y;
}

/* ---- Fourier transform ---- */

/* A plan transforms up to n points (a power of two); turn[k] = exp(-2 pi i k / n). Work arrays are split in
 * real and imaginary parts so that the inner loops run over plain vectors. */
struct plan {
	size_t n;
	double *turn_re, *turn_im;
	double *re, *im, *re2, *im2;
};

static struct plan new_plan(size_t n)
{
	struct plan p = {.n = n};
	size_t quarter = n / 4, fine = 1;
	while (fine * fine < quarter)
		fine *= 2;
	p.turn_re = room(quarter, sizeof(double));
	p.turn_im = room(quarter, sizeof(double));
	double *fr = room(2 * fine, sizeof(double)), *fi = fr + fine;
	for (size_t k = 0; k < fine; k++) {
		fr[k] = cos(2 * PI * (double)k / (double)n);
		fi[k] = -sin(2 * PI * (double)k / (double)n);
	}
	for (size_t c = 0; c < quarter; c += fine) {
		double cr = cos(2 * PI * (double)c / (double)n), ci = -sin(2 * PI * (double)c / (double)n);
		for (size_t k = 0; k < fine && c + k < quarter; k++) {
			p.turn_re[c + k] = cr * fr[k] - ci * fi[k];
			p.turn_im[c + k] = cr * fi[k] + ci * fr[k];
		}
	}
	free(fr);
	p.re = room(n, sizeof(double));
	p.im = room(n, sizeof(double));
	p.re2 = room(n, sizeof(double));
	p.im2 = room(n, sizeof(double));
	return p;
}

/* radix4 does one decimation-in-frequency step of a Stockham transform: n points at stride s, x to y. */
static void radix4(const struct plan *p, size_t n, size_t s, const double *restrict xr, const double *restrict xi,
		   double *restrict yr, double *restrict yi)
{
	size_t q4 = n / 4, step = p->n / n;
	for (size_t k = 0; k < q4; k++) {
		double w1r = p->turn_re[k * step], w1i = p->turn_im[k * step];
		double w2r = w1r * w1r - w1i * w1i, w2i = 2 * w1r * w1i;
		double w3r = w1r * w2r - w1i * w2i, w3i = w1r * w2i + w1i * w2r;
		const double *ar = xr + s * k, *ai = xi + s * k;
		double *or = yr + 4 * s * k, *oi = yi + 4 * s * k;
		for (size_t q = 0; q < s; q++) {
			double a = ar[q], b = ar[q + s * q4], c = ar[q + 2 * s * q4], d = ar[q + 3 * s * q4];
			double e = ai[q], f = ai[q + s * q4], g = ai[q + 2 * s * q4], h = ai[q + 3 * s * q4];
			double pr = a + c, pi = e + g, mr = a - c, mi = e - g;
			double ur = b + d, ui = f + h, vr = b - d, vi = f - h;
			double t1r = mr + vi, t1i = mi - vr;
			double t2r = pr - ur, t2i = pi - ui;
			double t3r = mr - vi, t3i = mi + vr;
			or[q] = pr + ur;
			oi[q] = pi + ui;
			or[q + s] = t1r * w1r - t1i * w1i;
			oi[q + s] = t1r * w1i + t1i * w1r;
			or[q + 2 * s] = t2r * w2r - t2i * w2i;
			oi[q + 2 * s] = t2r * w2i + t2i * w2r;
			or[q + 3 * s] = t3r * w3r - t3i * w3i;
			oi[q + 3 * s] = t3r * w3i + t3i * w3r;
		}
	}
}

static void radix2(size_t s, const double *restrict xr, const double *restrict xi, double *restrict yr,
		   double *restrict yi)
{
	for (size_t q = 0; q < s; q++) {
		yr[q] = xr[q] + xr[q + s];
		yi[q] = xi[q] + xi[q + s];
		yr[q + s] = xr[q] - xr[q + s];
		yi[q + s] = xi[q] - xi[q + s];
	}
}

static void swap(double **a, double **b)
{
	double *t = *a;
	*a = *b;
	*b = t;
}

/* transform replaces the first n values in p->re, p->im by their discrete Fourier transform, unscaled. */
static void transform(struct plan *p, size_t n)
{
	size_t s = 1;
	while (n > 1) {
		if (n == 2) {
			radix2(s, p->re, p->im, p->re2, p->im2);
			n = 1;
		} else {
			radix4(p, n, s, p->re, p->im, p->re2, p->im2);
			n /= 4;
			s *= 4;
		}
		swap(&p->re, &p->re2);
		swap(&p->im, &p->im2);
	}
}

/* ---- noise ---- */

/* Strain of both detectors, equally long, at one rate. */
struct strain {
	double *h, *l;
	size_t n;
	double rate, start;
};

/* Noise spectra, one-sided, in strain^2/Hz, at k/SEGMENT_S Hz for the bins of the band; 0 elsewhere. */
struct noise {
	double *h, *l;
	size_t bins;
};

/* median returns the median of v, which it sorts. */
static double median(double *v, int n)
{
	for (int i = 1; i < n; i++) {
		double x = v[i];
		int j = i;
		for (; j > 0 && v[j - 1] > x; j--)
			v[j] = v[j - 1];
		v[j] = x;
	}
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* median_bias is the expected median of n exponential variates of mean one (order statistics, exact). */
static double median_bias(int n)
{
	double upper = 0;
	for (int i = n / 2 + 1; i <= n; i++)
		upper += 1.0 / i;
	return n % 2 ? upper : upper + 0.5 / (n / 2);
}

/* measure estimates the noise by Welch's method with the median: a signal or a glitch spoils few segments only.
 * Both detectors share a transform, one as real and one as imaginary part. */
static struct noise measure(struct plan *p, const struct strain *x)
{
	size_t len = SEGMENT_S * (size_t)x->rate, hop = len / 2, bins = len / 2;
	int segments = (int)((x->n - len) / hop + 1);
	size_t low = (size_t)(BAND_LOW * SEGMENT_S) - 1, high = (size_t)(BAND_HIGH * SEGMENT_S) + 2;
	if (high > bins)
		high = bins;
	double *window = room(len, sizeof *window), power = 0;
	for (size_t i = 0; i < len; i++) {
		window[i] = 0.5 - 0.5 * cos(2 * PI * (double)i / (double)len);
		power += window[i] * window[i];
	}
	double *ph = room((high - low) * (size_t)segments * 2, sizeof *ph), *pl = ph + (high - low) * (size_t)segments;
	for (int s = 0; s < segments; s++) {
		const double *h = x->h + (size_t)s * hop, *l = x->l + (size_t)s * hop;
		for (size_t i = 0; i < len; i++) {
			p->re[i] = h[i] * window[i];
			p->im[i] = l[i] * window[i];
		}
		transform(p, len);
		for (size_t k = low; k < high; k++) {
			double ar = p->re[k], ai = p->im[k], br = p->re[len - k], bi = p->im[len - k];
			size_t at = (k - low) * (size_t)segments + (size_t)s;
			ph[at] = (ar + br) * (ar + br) + (ai - bi) * (ai - bi);
			pl[at] = (ar - br) * (ar - br) + (ai + bi) * (ai + bi);
		}
	}
	/* 2/(rate power) makes it one-sided density; the sums above are of twice the amplitudes. */
	double scale = 0.25 * 2 / (x->rate * power) / median_bias(segments);
	struct noise s = {room(bins, sizeof(double)), room(bins, sizeof(double)), bins};
	for (size_t k = low; k < high; k++) {
		size_t at = (k - low) * (size_t)segments;
		s.h[k] = scale * median(ph + at, segments);
		s.l[k] = scale * median(pl + at, segments);
		if (!(s.h[k] > 0) || !(s.l[k] > 0))
			die(2, "a detector is silent in part of the band: no noise to measure", "");
	}
	free(ph);
	free(window);
	return s;
}

/* ---- waveform ---- */

/* bank gives the template of unit u of n: mass ratios take turns, chirp masses grow by equal factors over the whole
 * range, so any n covers it, the finer the larger. */
static void bank(long u, long n, double *chirp_mass, double *ratio)
{
	long ratios = n < RATIOS ? n : RATIOS;
	long r = u % ratios, steps = (n - r + ratios - 1) / ratios;
	*ratio = RATIO[r];
	*chirp_mass = MASS_LOW * pow(MASS_HIGH / MASS_LOW, ((double)(u / ratios) + 0.5) / (double)steps);
}

/*
 * wave is IMRPhenomB without spin: inspiral, merger and ringdown in the frequency domain.
 * P. Ajith et al., Phys. Rev. Lett. 106, 241101 (2011), arXiv:0909.2867, equations 1 and 2, table I at chi = 0.
 */
struct wave {
	double mass;                      /* total, seconds */
	double merge, ring, width, cut;   /* Hz */
	double amp2, mid1, mid2;          /* amplitude corrections */
	double mid, tail;                 /* factors that make the amplitude continuous */
	double psi[9];                    /* phase, by power of v, times v^-5 */
	double delay;                     /* s, of the ringdown frequency: the merger is put at 0 */
};

static double inspiral_amp(const struct wave *w, double f, double v)
{
	double x = f / w->merge;
	return (1 + w->amp2 * v * v) / (x * sqrt(cbrt(x)));
}

static double merger_amp(const struct wave *w, double f, double v)
{
	double c = cbrt(f / w->merge);
	return (1 + w->mid1 * v + w->mid2 * v * v) / (c * c);
}

static double ringdown_amp(const struct wave *w, double f)
{
	double d = f - w->ring;
	return w->width / (2 * PI) / (d * d + w->width * w->width / 4);
}

static double speed(const struct wave *w, double f)
{
	return cbrt(PI * w->mass * f);
}

static struct wave new_wave(double chirp_mass, double ratio)
{
	double n = ratio / ((1 + ratio) * (1 + ratio)), n2 = n * n, n3 = n2 * n;
	struct wave w = {.mass = chirp_mass * SUN / pow(n, 0.6)};
	double unit = 1 / (PI * w.mass);
	w.merge = unit * (1 - 4.4547 + 3.521 + 0.64365 * n - 0.058218 * n2 - 7.0916 * n3);
	w.ring = unit * (0.37 / 2 + 0.14690 * n - 0.024900 * n2 + 2.3252 * n3);
	w.width = unit * (0.37 / 4 - 0.40979 * n + 1.8286 * n2 - 2.8698 * n3);
	w.cut = unit * (0.32361 - 0.13313 * n - 0.27140 * n2 + 4.9220 * n3);
	w.amp2 = -323.0 / 224 + 451.0 / 168 * n;
	w.mid1 = -1.8897;
	w.mid2 = 1.6557;
	double v1 = speed(&w, w.merge), v2 = speed(&w, w.ring);
	w.mid = inspiral_amp(&w, w.merge, v1) / merger_amp(&w, w.merge, v1);
	w.tail = w.mid * merger_amp(&w, w.ring, v2) / ringdown_amp(&w, w.ring);

	double lead = 3 / (128 * n);
	w.psi[0] = lead;
	w.psi[2] = lead * (3715.0 / 756 - 920.91 * n + 6741.9 * n2 - 13397 * n3);
	w.psi[3] = lead * (-16 * PI + 17022 * n - 121370 * n2 + 238590 * n3);
	w.psi[4] = lead * (15293365.0 / 508032 - 125440 * n + 873540 * n2 - 1693600 * n3);
	w.psi[6] = lead * (-889770 * n + 5980800 * n2 - 11280000 * n3);
	w.psi[7] = lead * (869600 * n - 5837900 * n2 + 10891000 * n3);
	w.psi[8] = lead * (-366000 * n + 2426500 * n2 - 4552400 * n3);

	double slope = 0, power = 1 / (v2 * v2 * v2 * v2 * v2);
	for (int j = 0; j < 9; j++, power *= v2)
		slope += w.psi[j] * (j - 5) / 3 * power;
	w.delay = slope / (2 * PI * w.ring);
	return w;
}

/* wave_at gives amplitude (of any scale) and phase at f below the cut: the transform is amp exp(-i phase). */
static inline double wave_at(const struct wave *w, double f, double *phase)
{
	double v = speed(w, f), v2 = v * v, v4 = v2 * v2;
	const double *c = w->psi;
	double sum = c[0] + v2 * (c[2] + c[3] * v) + v4 * (c[4] + v2 * (c[6] + c[7] * v + c[8] * v2));
	*phase = sum / (v4 * v) - 2 * PI * f * w->delay;
	if (f < w->merge)
		return inspiral_amp(w, f, v);
	if (f < w->ring)
		return w->mid * merger_amp(w, f, v);
	return w->tail * ringdown_amp(w, f);
}

/* duration is how long the wave stays above the band's lower end before it merges, to leading order. */
static double duration(double chirp_mass)
{
	return 5.0 / 256 * pow(PI * BAND_LOW, -8.0 / 3) * pow(chirp_mass * SUN, -5.0 / 3);
}

/* ---- search ---- */

/* spectrum_at reads s between its bins. */
static inline double spectrum_at(const double *s, size_t bins, double f)
{
	double at = f * SEGMENT_S;
	size_t k = (size_t)at;
	if (k + 1 >= bins)
		return s[bins - 1];
	return s[k] + (at - (double)k) * (s[k + 1] - s[k]);
}

/* What the matched filter made of one detector. */
struct filtered {
	double *power;           /* squared signal-to-noise ratio, by sample */
	double *re, *im;         /* its integrand, by frequency, from bin `low` on */
	size_t low, bins;
	size_t edge[BINS + 1];   /* bands that carry equal shares of the template's own ratio; [0] is 0 */
	double scale;            /* of the integral's square */
};

/* finish sets bands and scale from the template's power spectrum over the noise, and power by an inverse transform. */
static void finish(struct filtered *d, struct plan *p, size_t n, const double *share, double df, double rate)
{
	double norm = 0, sum = 0;
	for (size_t k = 0; k < d->bins; k++)
		norm += share[k];
	int band = 0;
	for (size_t k = 0; k < d->bins; k++) {
		if (sum >= norm * band / BINS)
			d->edge[band++] = k;
		sum += share[k];
	}
	while (band <= BINS)
		d->edge[band++] = d->bins;
	/* z = 4 df sum(X conj(w) / S) / rate, its variance 4 df sum(|w|^2 / S). */
	d->scale = 4 * df / (rate * rate * norm);

	memset(p->re, 0, n * sizeof(double));
	memset(p->im, 0, n * sizeof(double));
	memcpy(p->re + d->low, d->im, d->bins * sizeof(double)); /* swapped parts: the forward transform inverts */
	memcpy(p->im + d->low, d->re, d->bins * sizeof(double));
	transform(p, n);
	for (size_t i = 0; i < n; i++)
		d->power[i] = d->scale * (p->re[i] * p->re[i] + p->im[i] * p->im[i]);
}

/* new_fade returns a factor per sample: 0 in gaps, rising to 1 over `taper` samples from them and from the ends. */
static double *new_fade(const double *x, size_t n, double taper)
{
	double *f = room(n, sizeof *f);
	for (size_t i = 0, end; i < n; i = end) {
		for (end = i + 1; end < n && x[end] == x[i]; end++)
			;
		for (size_t k = i; k < end; k++)
			f[k] = end - i < GAP ? taper : 0;
	}
	double left = 0, right = 0; /* samples from the last gap, from the next */
	for (size_t i = 0; i < n; i++) {
		left = f[i] > 0 ? left + 1 : 0;
		f[i] = f[i] < left ? f[i] : left;
	}
	for (size_t i = n; i-- > 0;) {
		right = f[i] > 0 ? right + 1 : 0;
		f[i] = f[i] < right ? f[i] : right;
	}
	for (size_t i = 0; i < n; i++)
		f[i] = f[i] < taper ? 0.5 - 0.5 * cos(PI * f[i] / taper) : 1;
	return f;
}

/* filter runs the matched filter for w over both detectors, padded to n samples. */
static void filter(struct plan *p, const struct strain *x, const struct noise *s, const struct wave *w, size_t n,
		   struct filtered *h, struct filtered *l)
{
	double *fade_h = new_fade(x->h, x->n, TAPER * x->rate), *fade_l = new_fade(x->l, x->n, TAPER * x->rate);
	memset(p->re, 0, n * sizeof(double));
	memset(p->im, 0, n * sizeof(double));
	for (size_t i = 0; i < x->n; i++) {
		p->re[i] = fade_h[i] * x->h[i];
		p->im[i] = fade_l[i] * x->l[i];
	}
	free(fade_h);
	free(fade_l);
	transform(p, n);

	double df = x->rate / (double)n, top = BAND_HIGH < w->cut ? BAND_HIGH : w->cut;
	if (top > 0.48 * x->rate)
		top = 0.48 * x->rate;
	size_t low = (size_t)ceil(BAND_LOW / df), bins = (size_t)(top / df) - low + 1;
	struct filtered *both[] = {h, l};
	for (int i = 0; i < 2; i++)
		*both[i] = (struct filtered){.power = room(n, sizeof(double)), .re = room(bins, sizeof(double)),
					     .im = room(bins, sizeof(double)), .low = low, .bins = bins};
	double *share_h = room(bins, sizeof(double)), *share_l = room(bins, sizeof(double));
	for (size_t i = 0; i < bins; i++) {
		size_t k = low + i;
		double f = (double)k * df, phase, amp = wave_at(w, f, &phase);
		double wh = amp / spectrum_at(s->h, s->bins, f), wl = amp / spectrum_at(s->l, s->bins, f);
		share_h[i] = amp * wh;
		share_l[i] = amp * wl;
		double c = cos(phase), d = sin(phase);
		double ar = p->re[k], ai = p->im[k], br = p->re[n - k], bi = p->im[n - k];
		double xr = 0.5 * (ar + br), xi = 0.5 * (ai - bi); /* H1 */
		double yr = 0.5 * (ai + bi), yi = 0.5 * (br - ar); /* L1 */
		h->re[i] = wh * (xr * c - xi * d);
		h->im[i] = wh * (xr * d + xi * c);
		l->re[i] = wl * (yr * c - yi * d);
		l->im[i] = wl * (yr * d + yi * c);
	}
	finish(h, p, n, share_h, df, x->rate);
	finish(l, p, n, share_l, df, x->rate);
	free(share_h);
	free(share_l);
}

/*
 * weigh returns the signal-to-noise ratio at sample i, lowered if the signal's bands do not contribute alike, as those
 * of a glitch do not. The chi-squared test, with an allowance for a template that is not quite the signal's, is
 * B. Allen's, Phys. Rev. D 71, 062001 (2005); the weight is that of S. Babak et al., Phys. Rev. D 87, 024033 (2013),
 * equation 17.
 */
static double weigh(const struct filtered *d, size_t i, size_t n)
{
	double part_re[BINS], part_im[BINS], sum_re = 0, sum_im = 0;
	double step = 2 * PI * (double)i / (double)n, turn_re = cos(step), turn_im = sin(step);
	double wr = 1, wi = 0; /* a common phase does not matter: it may start at the band's end */
	for (int b = 0; b < BINS; b++) {
		double re = 0, im = 0;
		for (size_t k = d->edge[b]; k < d->edge[b + 1]; k++) {
			re += d->re[k] * wr - d->im[k] * wi;
			im += d->re[k] * wi + d->im[k] * wr;
			double next = wr * turn_re - wi * turn_im;
			wi = wr * turn_im + wi * turn_re;
			wr = next;
		}
		part_re[b] = re;
		part_im[b] = im;
		sum_re += re;
		sum_im += im;
	}
	double chi2 = 0;
	for (int b = 0; b < BINS; b++) {
		double re = part_re[b] - sum_re / BINS, im = part_im[b] - sum_im / BINS;
		chi2 += re * re + im * im;
	}
	double power = d->scale * (sum_re * sum_re + sum_im * sum_im), snr = sqrt(power);
	double reduced = chi2 * d->scale * BINS / (2 * BINS - 2 + MISMATCH * power);
	return reduced > 1 ? snr / cbrt(sqrt((1 + reduced * reduced * reduced) / 2)) : snr;
}

/* A peak in each detector: samples and signal-to-noise ratios. */
struct pair {
	size_t h, l;
	double snr_h, snr_l;
};

static int seen_by_both(const struct pair *p)
{
	return p->snr_h >= FLOOR && p->snr_l >= FLOOR;
}

static double network(const struct pair *p)
{
	return sqrt(p->snr_h * p->snr_h + p->snr_l * p->snr_l);
}

static int beats(const struct pair *a, const struct pair *b)
{
	if (seen_by_both(a) != seen_by_both(b))
		return seen_by_both(a);
	return network(a) > network(b);
}

/* loudest finds the pair within the light travel time whose squares sum highest, in samples first..last. */
static struct pair loudest(const double *h, const double *l, size_t first, size_t last, size_t reach)
{
	const double floor = FLOOR * FLOOR;
	size_t best_h = first, best_l = first;
	double best = -1;
	int best_both = 0;
	for (size_t block = first; block <= last; block += reach) {
		/* No sample of this block can win if not even the loudest of either detector would. */
		size_t end = block + reach <= last ? block + reach : last + 1;
		size_t from = block >= first + reach ? block - reach : first;
		size_t to = end - 1 + reach <= last ? end - 1 + reach : last;
		double top_h = 0, top_l = 0;
		for (size_t i = block; i < end; i++)
			top_h = h[i] > top_h ? h[i] : top_h;
		for (size_t j = from; j <= to; j++)
			top_l = l[j] > top_l ? l[j] : top_l;
		int may = top_h >= floor && top_l >= floor;
		if (may < best_both || (may == best_both && top_h + top_l <= best))
			continue;
		for (size_t i = block; i < end; i++) {
			size_t a = i >= first + reach ? i - reach : first, b = i + reach <= last ? i + reach : last;
			for (size_t j = a; j <= b; j++) {
				int both = h[i] >= floor && l[j] >= floor;
				if (both < best_both || (both == best_both && h[i] + l[j] <= best))
					continue;
				best_h = i;
				best_l = j;
				best = h[i] + l[j];
				best_both = both;
			}
		}
	}
	return (struct pair){best_h, best_l, sqrt(h[best_h]), sqrt(l[best_l])};
}

/* hide takes a pair's surroundings out of the search. */
static void hide(struct filtered *d, size_t at, size_t n, size_t reach)
{
	for (size_t i = at > reach ? at - reach : 0; i < n && i <= at + reach; i++)
		d->power[i] = 0;
}

/* best_pair weighs pairs, the loudest first, until none that is left could win: a weight never raises a ratio. */
static struct pair best_pair(struct filtered *h, struct filtered *l, size_t n, size_t first, size_t last, double rate)
{
	struct pair best = {first, first, 0, 0};
	for (int try = 0; try < TRIES; try++) {
		struct pair p = loudest(h->power, l->power, first, last, (size_t)(TRAVEL * rate));
		if (!beats(&p, &best))
			break;
		p.snr_h = weigh(h, p.h, n);
		p.snr_l = weigh(l, p.l, n);
		if (beats(&p, &best))
			best = p;
		hide(h, p.h, n, (size_t)(APART * rate));
		hide(l, p.l, n, (size_t)(APART * rate));
	}
	return best;
}

static struct strain load(const struct args *a)
{
	double rate, start;
	read_meta(a->meta, &rate, &start);
	if (!(rate == 1024 || rate == 2048 || rate == 4096 || rate == 8192 || rate == 16384))
		die(2, "meta: sample_rate_hz: wanted 1024, 2048, 4096, 8192 or 16384", "");
	size_t most = LONGEST_S * (size_t)rate, nh, nl;
	double *h = read_strain(a->h1, most, &nh), *l = read_strain(a->l1, most, &nl);
	size_t n = nh < nl ? nh : nl;
	if (n < SHORTEST_S * (size_t)rate)
		die(2, "wanted at least 8 s of strain of both detectors", "");
	for (; rate > RATE; rate /= 2) {
		size_t m = n;
		h = halve(h, &m);
		m = n;
		l = halve(l, &m);
		n = m;
	}
	return (struct strain){h, l, n, rate, start};
}

int main(int argc, char **argv)
{
	struct args a = parse(argc, argv);
	struct strain x = load(&a);
	size_t n = 1;
	while (n < x.n)
		n *= 2;
	double chirp_mass, ratio;
	bank(a.unit, a.of, &chirp_mass, &ratio);

	struct plan p = new_plan(n);
	struct noise s = measure(&p, &x);
	struct wave w = new_wave(chirp_mass, ratio);
	struct filtered h, l;
	filter(&p, &x, &s, &w, n, &h, &l);

	size_t first = (size_t)((EDGE + duration(chirp_mass)) * x.rate), last = x.n - 1 - (size_t)(EDGE * x.rate);
	struct pair best = best_pair(&h, &l, n, first, last, x.rate);
	int wrote = printf("%ld %.6f %.4f %.2f %.3f %.3f %.3f\n", a.unit, x.start + (double)best.h / x.rate, chirp_mass,
			   ratio, best.snr_h, best.snr_l, network(&best));
	if (wrote < 0 || fflush(stdout))
		die(1, "cannot write the result", "");
	return 0;
}
