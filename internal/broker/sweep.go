package broker

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/crowdcloud/crowd"
)

// sweepBlobs removes blobs that nobody owns: an earlier life of the broker died between their naming and their owning. It ends when it has looked at
// every blob once.
func (b *Broker) sweepBlobs(ctx context.Context) {
	err := filepath.WalkDir(filepath.Join(b.cfg.Dir, "blobs"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil || e.IsDir() {
			return errors.Join(err, ctx.Err())
		}
		raw, err := hex.DecodeString(e.Name())
		st, err2 := e.Info()
		if err != nil || err2 != nil || len(raw) != len(crowd.Digest{}) || !st.ModTime().Before(b.begun) {
			return nil //nolint:nilerr // no blob, or gone meanwhile
		}
		owned, err := b.st.OwnedBlob(ctx, crowd.Digest(raw))
		if err != nil || owned {
			return err
		}
		return b.removeUnowned(ctx, path, crowd.Digest(raw))
	})
	if err != nil && ctx.Err() == nil {
		b.log.Warn("can't look for blobs without an owner", "err", err)
	}
}

// removeUnowned removes a blob unless somebody has become its owner, or is about to.
func (b *Broker) removeUnowned(ctx context.Context, path string, d crowd.Digest) error {
	b.naming.Lock()
	defer b.naming.Unlock()
	owned, err := b.st.OwnedBlob(ctx, d)
	if err == nil && !owned {
		err = os.Remove(path)
		b.log.Info("removed a blob without an owner", "blob", d.Short())
	}
	return err
}

// nameFile makes a written file durable under its name: each step only if the one before went well.
func nameFile(f *os.File, path string) error {
	err := f.Sync()
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return keepError(err)
	}
	return nil
}

func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// keepError says why something could not be kept in the broker's folder.
func keepError(err error) error {
	if diskFull(err) {
		return crowd.Errorf(crowd.Exhausted, crowd.BrokerDisk, "the broker's disk is full").WithHint("%s", crowd.Reasons[crowd.BrokerDisk].WayOut)
	}
	return crowd.Errorf(crowd.Internal, "", "keep it on disk: %w", err)
}
