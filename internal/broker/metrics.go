package broker

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/crowdcloud/crowd"
)

// metrics are the broker's, in a registry of their own.
type metrics struct {
	reg         *prometheus.Registry
	leases      prometheus.Counter
	reports     *prometheus.CounterVec
	ended       *prometheus.CounterVec
	verdicts    prometheus.Counter
	quarantined prometheus.Counter
	jobsTaken   prometheus.Counter
	jobsEnded   *prometheus.CounterVec
	apply       prometheus.Histogram
}

func newMetrics(b *Broker) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		reg:         prometheus.NewRegistry(),
		leases:      counter("crowd_leases_total", "Attempts leased to hosts."),
		reports:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crowd_reports_total", Help: "Reports by what became of them."}, []string{"answer"}),
		ended:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crowd_attempts_ended_total", Help: "Attempts that ended without an answer."}, []string{"state", "reason"}),
		verdicts:    counter("crowd_verdicts_total", "Chunks decided."),
		quarantined: counter("crowd_hosts_quarantined_total", "Hosts proved wrong."),
		jobsTaken:   counter("crowd_jobs_ordered_total", "Orders taken."),
		jobsEnded:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crowd_jobs_ended_total", Help: "Jobs ended, by state."}, []string{"state"}),
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "crowd_apply_seconds", Help: "How long a durable change takes.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
	}
	m.reg.MustRegister(m.leases, m.reports, m.ended, m.verdicts, m.quarantined, m.jobsTaken, m.jobsEnded, m.apply, &gauges{b: b})
	return m
}

func (m *metrics) applyStart() time.Time { return time.Now() }

func (m *metrics) applyEnd(t time.Time) { m.apply.Observe(time.Since(t).Seconds()) }

// gauges are counted when they are asked for.
type gauges struct{ b *Broker }

var (
	descHosts    = prometheus.NewDesc("crowd_hosts_online", "Hosts connected now.", nil, nil)
	descAttempts = prometheus.NewDesc("crowd_attempts_live", "Attempts leased now.", nil, nil)
	descJobs     = prometheus.NewDesc("crowd_jobs", "Living jobs by state.", []string{"state"}, nil)
	descLedger   = prometheus.NewDesc("crowd_ledger_sum_ucr", "Sum of all postings: zero, always.", nil, nil)
)

// Describe and Collect make it a prometheus.Collector.
func (g *gauges) Describe(c chan<- *prometheus.Desc) {
	c <- descHosts
	c <- descAttempts
	c <- descJobs
	c <- descLedger
}

func (g *gauges) Collect(c chan<- prometheus.Metric) {
	b := g.b
	b.mu.Lock()
	online, live := 0, b.live
	jobs := map[crowd.JobState]int{crowd.JobQueued: 0, crowd.JobRunning: 0, crowd.JobWaiting: 0}
	for _, h := range b.hosts {
		if h.conn != nil {
			online++
		}
	}
	for _, j := range b.jobs {
		jobs[j.State]++
	}
	b.mu.Unlock()
	c <- prometheus.MustNewConstMetric(descHosts, prometheus.GaugeValue, float64(online))
	c <- prometheus.MustNewConstMetric(descAttempts, prometheus.GaugeValue, float64(live))
	for s, n := range jobs {
		c <- prometheus.MustNewConstMetric(descJobs, prometheus.GaugeValue, float64(n), string(s))
	}
	if sum, err := b.st.LedgerSum(context.Background()); err == nil {
		c <- prometheus.MustNewConstMetric(descLedger, prometheus.GaugeValue, float64(sum))
	}
}

// MetricsHandler serves Prometheus text.
func (b *Broker) MetricsHandler() http.Handler {
	return promhttp.HandlerFor(b.met.reg, promhttp.HandlerOpts{})
}
