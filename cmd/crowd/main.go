// Crowd is the one command of the crowd-sourced cloud: rent idle machines, lend yours, or run a broker.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/crowdcloud/crowd/internal/guest/wasm"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "guest-child" { // what the engine starts its caged guests as
		os.Exit(wasm.ChildMain())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}
