package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/crowdcloud/crowd"
)

// pieceBytes is how much of an upload one request carries, and so what a broken connection costs at most.
const pieceBytes = 8 << 20

// HasBlob says how many bytes of d the broker has for this account, and whether that is all.
func (c *Client) HasBlob(ctx context.Context, d crowd.Digest) (have int64, whole bool, err error) {
	resp, err := c.do(ctx, call{method: http.MethodHead, path: at("blobs", d.String())})
	if err != nil {
		return 0, false, err
	}
	_ = resp.Body.Close()
	have, _ = strconv.ParseInt(resp.Header.Get("Crowd-Have-Bytes"), 10, 64)
	switch resp.StatusCode {
	case http.StatusOK:
		return have, true, nil
	case http.StatusAccepted, http.StatusNotFound:
		return have, false, nil
	case http.StatusUnauthorized, http.StatusForbidden: // an answer to HEAD has no body to say why
		_, err := c.Me(ctx)
		if err == nil {
			err = crowd.Errorf(crowd.Denied, crowd.CustomerScope, "this key may not upload")
		}
		return 0, false, err
	}
	return 0, false, c.refusal(resp)
}

// Upload sends content of a known digest and size, from where an earlier upload broke off. What the broker has already isn't sent again. progress
// (nil: none) is called with the bytes that are there.
func (c *Client) Upload(ctx context.Context, d crowd.Digest, size int64, r io.ReaderAt, progress func(have, size int64)) error {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	have, whole, err := c.HasBlob(ctx, d)
	if err != nil {
		return err
	}
	buf := make([]byte, min(size, pieceBytes))
	for again := 0; !whole; {
		if have >= size && size > 0 { // all there, but not yet the caller's: the broker died, or the connection
			have = size - 1
		}
		progress(have, size)
		n, err := r.ReadAt(buf[:min(size-have, pieceBytes)], have)
		if err != nil && (err != io.EOF || int64(n) < min(size-have, pieceBytes)) { //nolint:errorlint // io.ReaderAt's contract
			return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "a file changed while it was being sent: %w", err)
		}
		q := call{method: http.MethodPut, path: at("blobs", d.String()), body: buf[:n], header: http.Header{"Content-Type": {"application/octet-stream"}}}
		if size > 0 {
			q.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", have, have+int64(n)-1, size))
		}
		var answer struct {
			Have int64 `json:"have_bytes"`
		}
		switch err := c.json(ctx, q, &answer); {
		case err == nil:
			have, again = answer.Have, 0
			whole = have == size
		case crowd.KindIs(err, crowd.Conflict) && again < 3: // a try whose answer got lost did arrive
			again++
			if have, whole, err = c.HasBlob(ctx, d); err != nil {
				return err
			}
		default:
			return err
		}
	}
	progress(size, size)
	return nil
}
