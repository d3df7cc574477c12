package api

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/link"
	"github.com/crowdcloud/crowd/internal/seal"
)

// machine is a host that speaks over a real link.
type machine struct {
	w      *world
	name   string
	key    ed25519.PrivateKey
	row    crowd.Host
	token  string
	dials  int64
	sess   crowd.SessionID
	conn   *link.Conn
	bearer string
	said   []byte // what each unit writes to stdout, stderr and a file
}

// machine enrols a host of an account.
func (w *world) machine(owner, name string) *machine {
	w.t.Helper()
	l, err := seal.ParseJoinLink(w.want(201, "POST", "/v1/tokens", owner, `{}`).json(w.t)["link"].(string))
	must(w.t, err)
	seed := sha256.Sum256([]byte(name))
	m := &machine{w: w, name: name, key: ed25519.NewKeyFromSeed(seed[:]), token: l.Token, said: []byte("said\n")}
	body, err := json.Marshal(crowd.JoinRequest{Token: l.Token, Key: m.key.Public().(ed25519.PublicKey), Name: name, Place: crowd.Place{Jurisdiction: "DE"},
		Platform: crowd.Platform{OS: "linux", Arch: "amd64", Device: "desktop"}, Capacity: m.capacity()})
	must(w.t, err)
	must(w.t, json.Unmarshal(w.want(201, "POST", "/v1/hosts/join", "", string(body)).body, &m.row))
	mint(&m.sess, time.Now(), [10]byte(seed[10:]))
	return m
}

func (m *machine) capacity() crowd.Capacity {
	return crowd.Capacity{Slots: 4, MemoryBytes: 8 << 30, DiskBytes: 10 << 30, Speed: 1}
}

// dial connects; room is how many attempts it would take.
func (m *machine) dial(room int) error {
	fp := seal.Fingerprint(brokerKey.Public().(ed25519.PublicKey))
	m.dials++
	c, welcome, err := link.Dial(m.w.t.Context(), link.DialOptions{URL: m.w.url, Pin: seal.Pin(fp), Key: m.key, Host: m.row.ID, Session: m.sess, DialNumber: m.dials})
	if err != nil {
		return err
	}
	m.conn, m.bearer = c, welcome.Bearer
	m.w.t.Cleanup(func() { c.Close(nil) })
	return c.Send(&crowd.Message{Renew: &crowd.Renew{N: 1, State: crowd.Ready, Room: room, Memory: 8 << 30, Capacity: m.capacity()}})
}

// lease waits for the next one.
func (m *machine) lease() *crowd.Lease {
	m.w.t.Helper()
	for {
		x, err := m.conn.Receive(m.w.t.Context())
		must(m.w.t, err)
		if x.Lease != nil {
			return x.Lease
		}
	}
}

// report answers a lease and waits for what became of that.
func (m *machine) report(l *crowd.Lease) crowd.ReportAnswer {
	m.w.t.Helper()
	must(m.w.t, m.conn.Send(&crowd.Message{Report: m.words(l)}))
	for {
		x, err := m.conn.Receive(m.w.t.Context())
		must(m.w.t, err)
		if x.Reported != nil && x.Reported.AttemptRef == l.AttemptRef {
			return x.Reported.Answer
		}
	}
}

func (m *machine) words(l *crowd.Lease) *crowd.Report {
	o, contents := &crowd.Outcome{First: l.First}, make([]crowd.UnitContent, l.Count)
	ref := crowd.ContentRef{Digest: digest.Of(m.said), Size: int64(len(m.said))}
	for i := range contents {
		contents[i] = crowd.UnitContent{Stdout: m.said, Stderr: m.said, Files: [][]byte{m.said}}
		o.Units = append(o.Units, crowd.UnitResult{Fuel: 1e6, Stdout: ref, Stderr: ref.Size, Files: []crowd.OutputFile{{Path: "left.txt", ContentRef: ref}}})
	}
	r := &crowd.Report{AttemptRef: l.AttemptRef, Digest: digest.Of(o.Manifest()), Fuel: o.Fuel(), Body: o.Body(contents)}
	m.sign(r)
	return r
}

func (m *machine) sign(r *crowd.Report) {
	r.Sig = ed25519.Sign(m.key, crowd.ReportBytes(m.row.ID, r.AttemptRef, r.Digest, r.Fuel))
}

// elsewhere makes clients that each call from a network of their own.
func elsewhere(t *testing.T) func() *http.Client {
	n := 0
	return func() *http.Client {
		n++
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, byte(1+n/250), byte(1+n%250), 1)}}
		tr := &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
}
