package lease

import "github.com/crowdcloud/crowd"

// Weight is what the end of an attempt says about its host and its chunk.
type Weight int

// Weights, lightest first.
const (
	Blameless Weight = iota // owners, customers, the network, the broker: nobody's fault; says nothing about the chunk
	Loss                    // the machine vanished: nobody is blamed, but many in a row give the chunk a breather
	Failure                 // it failed by itself: Limits.FailedAttempts of them fail the chunk
	Fault                   // the host is to blame: quarantine
)

// Weigh says how the reason of an attempt's end weighs. Reasons that no attempt ends by are Blameless.
func Weigh(r crowd.Reason) Weight {
	switch r {
	case crowd.HostLost, crowd.NetworkHost:
		return Loss
	case crowd.HostFailed, crowd.GuestTime:
		return Failure
	case crowd.HostCheated, crowd.HostCloned:
		return Fault
	}
	return Blameless
}

// MayReturn reports whether a host may give r as the reason of a Return; another is taken as host.failed.
func MayReturn(r crowd.Reason) bool {
	switch r {
	case crowd.OwnerPaused, crowd.OwnerLeft, crowd.OwnerSchedule, crowd.OwnerStopped, crowd.OwnerPolicy, crowd.OwnerSleep,
		crowd.HostSmall, crowd.HostBusy, crowd.HostFailed, crowd.GuestTime:
		return true
	}
	return false
}
