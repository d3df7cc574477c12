package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/crowdcloud/crowd"
)

// sumEvery is how often all postings are seen to sum to zero; only those since the last time are read.
const sumEvery = time.Minute

// sumLoop looks at the one thing that must hold whatever happens. If it doesn't, operators are told, once in a life of the broker.
func (b *Broker) sumLoop(ctx context.Context) {
	told := false
	for {
		switch sum, err := b.st.LedgerSum(ctx); {
		case ctx.Err() != nil:
			return
		case err != nil:
			b.log.Error("can't add up the ledger", "err", err)
		case sum != 0:
			b.log.Error("the ledger doesn't sum to zero", "ucr", sum)
			if !told {
				told = b.commit(ctx, b.event("broker", crowd.AccountID{}, "ledger.unsound", "", fmt.Sprintf("all postings sum to %s, not to zero: crowd broker audit", money(sum)), crowd.EventData{UCR: sum})) == nil
			}
		}
		if !b.pause(ctx, sumEvery) {
			return
		}
	}
}
