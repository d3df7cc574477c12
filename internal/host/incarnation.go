package host

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/crowdcloud/crowd"
)

const seenName = "broker.json"

// seen is the highest incarnation that a broker has shown with the proof of its key: a broker whose store went back to an older state
// without `broker restore` has forgotten work and money that others remember.
type seen struct {
	Fingerprint string `json:"fingerprint"`
	Incarnation int64  `json:"incarnation"`
}

// loadSeen gives 0 for a broker that was never seen.
func loadSeen(dir, fingerprint string) int64 {
	var s seen
	b, err := os.ReadFile(filepath.Join(dir, seenName))
	if err != nil || json.Unmarshal(b, &s) != nil || s.Fingerprint != fingerprint {
		return 0
	}
	return s.Incarnation
}

// sees takes the incarnation of a broker that has proven its key: a higher one is kept, a lower one refused, and dialled again later: an operator
// may mend it. The link loop's.
func (a *Agent) sees(incarnation int64) error {
	switch {
	case incarnation > a.incarnation:
		a.incarnation, a.toldOld = incarnation, false
		b, _ := json.Marshal(seen{a.profile.Fingerprint, incarnation})
		if err := writeFile(filepath.Join(a.o.Dir, seenName), append(b, '\n')); err != nil {
			a.log.Warn("can't keep the broker's incarnation", "incarnation", incarnation, "err", err) // this process goes by it all the same
		}
	case incarnation < a.incarnation:
		err := crowd.Errorf(crowd.Unavailable, crowd.BrokerOld, "the broker is at incarnation %d, this machine has seen %d: its store is an older copy", incarnation, a.incarnation).
			WithHint("%s", crowd.Reasons[crowd.BrokerOld].WayOut)
		if !a.toldOld {
			a.toldOld = true
			a.log.Warn("the broker is refused", "err", err)
			a.book.add(Entry{What: "broker.refused", Reason: crowd.BrokerOld, Text: err.Message})
		}
		return err
	default:
		a.toldOld = false
	}
	return nil
}
