// Report reads what the units of a gwsearch job printed, names the merger they found, and draws it.
//
//	crowd run examples/gwsearch/job.yaml | go run ./examples/gwsearch/report --data examples/gwsearch/data
//
// Exit status: 0 found, 1 cannot read or write, 2 wrong arguments or lines, 8 nothing found.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/crowdcloud/crowd/examples/gwsearch/gw"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("report", flag.ContinueOnError)
	flags.SetOutput(stderr)
	data := flags.String("data", "", "folder with H1.f64, L1.f64 and meta.json; without it, no plot")
	plot := flags.String("plot", "gwsearch-snr.png", "the plot to write")
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: report [--data DIR] [--plot FILE] [LINES]")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() > 1 {
		flags.Usage()
		return 2
	}
	if flags.NArg() == 1 {
		f, err := os.Open(flags.Arg(0))
		if err != nil {
			fmt.Fprintln(stderr, "report:", err)
			return 1
		}
		defer f.Close()
		stdin = f
	}
	peaks, err := gw.ReadPeaks(stdin)
	if err != nil {
		fmt.Fprintln(stderr, "report:", err)
		return 2
	}
	event, found := gw.Pick(peaks)
	if !found {
		fmt.Fprintf(stderr, "report: nothing found: the loudest of %d templates has snr H1 %.1f, L1 %.1f, both %.1f\n",
			len(peaks), event.SNR.H1, event.SNR.L1, event.SNR.Network)
		fmt.Fprintf(stderr, "  hint: an event has %g in each detector and %g in both; try a finer bank or other strain\n",
			gw.MinDetector, gw.MinNetwork)
		return 8
	}
	fmt.Fprintf(stdout, "event    %s\n", event)
	if *data == "" {
		return 0
	}
	strain, err := gw.Load(*data)
	if err == nil {
		err = gw.Plot(strain, event, *plot)
	}
	if err != nil {
		fmt.Fprintln(stderr, "report:", err)
		return 1
	}
	fmt.Fprintf(stdout, "plot     %s\n", *plot)
	return 0
}
