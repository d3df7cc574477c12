package main

import (
	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd/internal/host"
)

func newHostDoctorCommand(a *app) *cobra.Command {
	var h hostFlags
	c := &cobra.Command{
		Use: "doctor", Short: "what this machine needs to be lent, and what is missing", Args: cobra.NoArgs, Example: "  crowd host doctor",
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, policy, err := h.resolve(a)
			if err != nil {
				return err
			}
			e, err := newEngine(a.log())
			if err != nil {
				return err
			}
			defer e.Close()
			var cs []check
			for _, c := range host.Doctor(cmd.Context(), dir, e, policy) {
				cs = append(cs, check(c))
			}
			return a.printChecks(cs)
		},
	}
	h.add(c, true)
	return c
}
