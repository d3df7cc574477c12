package broker

import (
	"context"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/store"
)

// unfinished are the bytes of uploads that aren't blobs yet, by account: of one that runs what was announced, else what is there. They count against
// the account's quota.
type unfinished struct {
	mu sync.Mutex
	of map[crowd.AccountID]map[crowd.Digest]int64
}

// set notes what an upload takes, 0: it is gone; false, and no change, if the account's uploads would then take more than most together.
func (u *unfinished) set(a crowd.AccountID, d crowd.Digest, bytes, most int64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	sum := bytes
	for other, n := range u.of[a] {
		if other != d {
			sum += n
		}
	}
	switch {
	case sum > most:
		return false
	case bytes == 0:
		delete(u.of[a], d)
		if len(u.of[a]) == 0 {
			delete(u.of, a)
		}
		return true
	case u.of == nil:
		u.of = map[crowd.AccountID]map[crowd.Digest]int64{}
	}
	if u.of[a] == nil {
		u.of[a] = map[crowd.Digest]int64{}
	}
	u.of[a][d] = bytes
	return true
}

const noQuota = 1 << 62

// ordered ends an order's being made.
func (b *Broker) ordered(a crowd.AccountID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ordering[a]--; b.ordering[a] <= 0 {
		delete(b.ordering, a)
	}
}

// reserve makes sure that a blob of total bytes fits the account's quota, beside what it has and uploads now; settle is to be called when the
// request has ended.
func (b *Broker) reserve(ctx context.Context, a crowd.AccountID, d crowd.Digest, total int64) (settle func(), err error) {
	used, err := b.st.BlobBytes(ctx, a)
	if err != nil {
		return nil, err
	}
	if !b.unfinished.set(a, d, store.BlobCost(total), crowd.Limits.AccountBlobBytes-used) {
		return nil, crowd.Errorf(crowd.Exhausted, crowd.CustomerQuota, "%d bytes more are too many: an account has at most %d of blobs, and %d are used",
			total, crowd.Limits.AccountBlobBytes, used).WithHint("go on with uploads that were begun, or ask the broker's operator")
	}
	return func() {
		st, err := os.Stat(b.uploadPath(a, d))
		if err != nil {
			b.unfinished.set(a, d, 0, noQuota)
		} else if st.Size() == 0 {
			_ = os.Remove(b.uploadPath(a, d))
			b.unfinished.set(a, d, 0, noQuota)
		} else {
			b.unfinished.set(a, d, store.BlobCost(st.Size()), noQuota)
		}
	}, nil
}

// countUploads takes up the uploads that were begun before this start.
func (b *Broker) countUploads() {
	entries, err := os.ReadDir(filepath.Join(b.cfg.Dir, "uploads"))
	if err != nil {
		b.log.Warn("can't look at uploads", "err", err)
	}
	for _, e := range entries {
		account, sum, _ := strings.Cut(e.Name(), "-")
		var id crowd.AccountID
		var d crowd.Digest
		raw, err := hex.DecodeString(sum)
		if err != nil || len(raw) != len(d) || id.UnmarshalText([]byte(account)) != nil {
			continue
		}
		copy(d[:], raw)
		if st, err := e.Info(); err == nil {
			b.unfinished.set(id, d, store.BlobCost(st.Size()), noQuota)
		}
	}
}
