package broker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/store"
)

// Blobs are files named by digest under blobs/xx; who owns which stands in the store. A digest is a name, not a capability: what isn't the caller's
// looks like what isn't there.

func (b *Broker) blobPath(d crowd.Digest) string {
	return filepath.Join(b.cfg.Dir, "blobs", fmt.Sprintf("%02x", d[0]), fmt.Sprintf("%x", d[:]))
}

func (b *Broker) uploadPath(a crowd.AccountID, d crowd.Digest) string {
	return filepath.Join(b.cfg.Dir, "uploads", fmt.Sprintf("%s-%x", a, d[:]))
}

// inflightBlobs lets one request at a time write to an upload.
type inflightBlobs struct {
	mu sync.Mutex
	m  map[string]bool
}

func (u *inflightBlobs) enter(path string) (leave func(), ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.m[path] {
		return nil, false
	}
	if u.m == nil {
		u.m = map[string]bool{}
	}
	u.m[path] = true
	return func() {
		u.mu.Lock()
		delete(u.m, path)
		u.mu.Unlock()
	}, true
}

// PutBlob appends to an upload; see face.
func (b *Broker) PutBlob(ctx context.Context, c Caller, d crowd.Digest, offset, total int64, body io.Reader) (int64, error) {
	if err := need(c, crowd.ScopeOrder); err != nil {
		return 0, err
	}
	if d.IsZero() || total < 0 || offset < 0 || offset > total || total > crowd.Limits.BlobBytes {
		return 0, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "a blob has a digest and at most %d bytes", crowd.Limits.BlobBytes)
	}
	path := b.uploadPath(c.Account.ID, d)
	leave, ok := b.uploads.enter(path)
	if !ok {
		return 0, crowd.Errorf(crowd.Conflict, "", "another upload of %s runs", d.Short())
	}
	defer leave()
	if has, err := b.st.HasBlob(ctx, c.Account.ID, d); err != nil {
		return 0, err
	} else if has {
		return total, nil
	}
	settle, err := b.reserve(ctx, c.Account.ID, d, total)
	if err != nil {
		return 0, err
	}
	defer settle()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 0, crowd.Errorf(crowd.Internal, "", "open upload: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, crowd.Errorf(crowd.Internal, "", "look at upload: %w", err)
	}
	have := st.Size()
	if offset > have {
		return have, crowd.Errorf(crowd.Conflict, "", "%d bytes are there, not %d", have, offset)
	}
	if err := f.Truncate(offset); err != nil {
		return have, crowd.Errorf(crowd.Internal, "", "go on with upload: %w", err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return have, crowd.Errorf(crowd.Internal, "", "go on with upload: %w", err)
	}
	n, err := io.Copy(f, io.LimitReader(body, total-offset+1))
	have = offset + n
	crash.Point("upload.part.after")
	if have > total {
		_ = f.Truncate(0)
		return 0, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "more than the %d bytes that were announced", total)
	}
	if diskFull(err) {
		return have, keepError(err)
	}
	if err != nil {
		return have, crowd.Errorf(crowd.Unavailable, "", "the upload broke off after %d bytes: %w", have, err)
	}
	if have < total {
		return have, nil
	}
	return have, b.ownUpload(ctx, c, d, f, path, total)
}

// ownUpload checks a whole upload and makes it the caller's.
func (b *Broker) ownUpload(ctx context.Context, c Caller, d crowd.Digest, f *os.File, path string, total int64) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return crowd.Errorf(crowd.Internal, "", "read upload: %w", err)
	}
	sum, _, err := digest.Reader(f)
	if err != nil {
		return crowd.Errorf(crowd.Internal, "", "read upload: %w", err)
	}
	if sum != d {
		_ = os.Remove(path)
		return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "what was sent is %s, not %s", sum.Short(), d.Short()).WithHint("send it again from the start")
	}
	to, now := b.blobPath(d), time.Now()
	b.naming.RLock()
	defer b.naming.RUnlock()
	crash.Point("upload.whole.before")
	if err := os.Chtimes(path, now, now); err != nil { // the time is for the sweep
		return keepError(err)
	}
	if err := nameFile(f, to); err != nil {
		return err
	}
	crash.Point("upload.whole.after")
	return b.commit(ctx, store.PutBlob{Digest: d, Account: c.Account.ID, Size: total, At: b.now()})
}

// makeBlobDirs makes the folders that blobs are renamed into, durably.
func makeBlobDirs(dir string) error {
	for i := range 256 {
		if err := os.MkdirAll(filepath.Join(dir, fmt.Sprintf("%02x", i)), 0o700); err != nil {
			return crowd.Errorf(crowd.Internal, "", "make the folders of blobs: %w", err)
		}
	}
	if err := syncDir(dir); err != nil {
		return crowd.Errorf(crowd.Internal, "", "make the folders of blobs: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	_ = d.Sync() // not every system can
	return d.Close()
}

// HasBlob says how many bytes of d the broker has for this caller.
func (b *Broker) HasBlob(ctx context.Context, c Caller, d crowd.Digest) (int64, bool, error) {
	if err := need(c, crowd.ScopeRead); err != nil && !c.Key.Has(crowd.ScopeOrder) { // who uploads asks what is there
		return 0, false, err
	}
	has, err := b.st.HasBlob(ctx, c.Account.ID, d)
	if err != nil {
		return 0, false, err
	}
	path := b.uploadPath(c.Account.ID, d)
	if has {
		path = b.blobPath(d)
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, crowd.Errorf(crowd.Internal, "", "look at blob: %w", err)
	}
	return st.Size(), has, nil
}

// OpenBlob reads a blob of the caller.
func (b *Broker) OpenBlob(ctx context.Context, c Caller, d crowd.Digest) (io.ReadSeekCloser, error) {
	if err := need(c, crowd.ScopeRead); err != nil {
		return nil, err
	}
	if has, err := b.st.HasBlob(ctx, c.Account.ID, d); err != nil {
		return nil, err
	} else if !has {
		return nil, notFound("blob", d.Short())
	}
	return b.openFile(d)
}

func (b *Broker) openFile(d crowd.Digest) (io.ReadSeekCloser, error) {
	f, err := os.Open(b.blobPath(d))
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "open blob: %w", err)
	}
	return f, nil
}

func (b *Broker) bearer(bearer string) (*session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.bearers[bearer]
	if s == nil {
		return nil, &crowd.Error{Kind: crowd.Denied, Status: 401, Reason: crowd.CustomerKey, Message: "no connected host has this bearer token", Hint: "dial again"}
	}
	return s, nil
}

// HostOpenBlob reads what a live attempt of the bearer's host refers to.
func (b *Broker) HostOpenBlob(_ context.Context, bearer string, d crowd.Digest) (io.ReadSeekCloser, error) {
	s, err := b.bearer(bearer)
	if err != nil {
		return nil, err
	}
	type part struct {
		items        *items
		first, count uint64
	}
	var parts []part
	found := false
	if f, err := b.openState(s.host, d); f != nil || err != nil {
		return f, err
	}
	b.mu.Lock()
	for _, a := range s.host.live {
		spec := &a.chunk.job.Spec
		if spec.Program == d.String() || slices.ContainsFunc(spec.Inputs, func(in crowd.Input) bool { return in.Digest == d }) {
			found = true
			break
		}
		if it := a.chunk.job.items; it != nil {
			parts = append(parts, part{it, a.First, a.chunk.Count})
		}
	}
	b.mu.Unlock()
	for _, p := range parts {
		if found {
			break
		}
		in, err := p.items.slice(p.first, p.count)
		if err != nil {
			return nil, err
		}
		found = slices.ContainsFunc(in, func(in crowd.Input) bool { return in.Digest == d })
	}
	if !found || d.IsZero() {
		return nil, notFound("blob", d.Short())
	}
	return b.openFile(d)
}

// items are the units' own files of a job: a blob of a JSON Input a line, of which only the places of the lines are kept.
type items struct {
	path string
	at   []int64 // where unit i's line starts; one more: the end
}

func (b *Broker) openItems(d crowd.Digest) (*items, error) {
	it := &items{path: b.blobPath(d), at: []int64{0}}
	err := it.scan(func(crowd.Input) error { return nil })
	return it, err
}

// scan reads all lines, noting where they start.
func (it *items) scan(each func(crowd.Input) error) error {
	f, err := os.Open(it.path)
	if err != nil {
		return crowd.Errorf(crowd.Internal, "", "open the list of files: %w", err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 64<<10)
	sc.Split(wholeLines)
	at := int64(0)
	for sc.Scan() {
		line := sc.Bytes()
		at += int64(len(line))
		in, err := parseItem(line)
		if err != nil {
			return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "units.items: line %d: %w", len(it.at), err)
		}
		if err := each(in); err != nil {
			return err
		}
		it.at = append(it.at, at)
	}
	if err := sc.Err(); err != nil {
		return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "units.items: line %d: %w", len(it.at), err)
	}
	return nil
}

// wholeLines splits into lines with their ends.
func wholeLines(data []byte, eof bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i+1], nil
	}
	if eof && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

func parseItem(line []byte) (in crowd.Input, err error) {
	err = json.Unmarshal(line, &in)
	return in, err
}

func (it *items) count() uint64 { return uint64(len(it.at) - 1) }

// most is how many units from first on have lists of at most so many bytes together, at least 1.
func (it *items) most(first uint64, bytes int64) uint64 {
	n := uint64(1)
	for first+n < it.count() && it.at[first+n+1]-it.at[first] <= bytes {
		n++
	}
	return n
}

// slice reads the files of some units.
func (it *items) slice(first, count uint64) ([]crowd.Input, error) {
	if first+count > it.count() {
		return nil, crowd.Errorf(crowd.Internal, "", "the list of files has %d units, not %d", it.count(), first+count)
	}
	f, err := os.Open(it.path)
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "open the list of files: %w", err)
	}
	defer f.Close()
	buf := make([]byte, it.at[first+count]-it.at[first])
	if _, err := f.ReadAt(buf, it.at[first]); err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "read the list of files: %w", err)
	}
	out := make([]crowd.Input, 0, count)
	for i := first; i < first+count; i++ {
		in, err := parseItem(buf[it.at[i]-it.at[first] : it.at[i+1]-it.at[first]])
		if err != nil {
			return nil, crowd.Errorf(crowd.Internal, "", "read the list of files: %w", err)
		}
		out = append(out, in)
	}
	return out, nil
}
