package broker

import (
	"sync"

	"github.com/crowdcloud/crowd"
)

// bells are rung when something happened that an account may see; who listens for no account in particular hears them all. A bell for everybody would
// have each watcher look at the store for each event of the busiest account.
type bells struct {
	mu  sync.Mutex
	all bell
	of  map[crowd.AccountID]*bell // that somebody listens for
}

// listen returns a channel that is closed at the next ring.
func (b *bells) listen(a crowd.AccountID) <-chan struct{} {
	if a.IsZero() {
		return b.all.listen()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of == nil {
		b.of = map[crowd.AccountID]*bell{}
	}
	if b.of[a] == nil {
		b.of[a] = &bell{}
	}
	return b.of[a].listen()
}

func (b *bells) ring(a crowd.AccountID) {
	b.all.ring()
	b.mu.Lock()
	defer b.mu.Unlock()
	if x := b.of[a]; x != nil {
		x.ring()
		delete(b.of, a)
	}
}
