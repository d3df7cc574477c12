package main

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/api"
	"github.com/crowdcloud/crowd/internal/broker"
	"github.com/crowdcloud/crowd/internal/guest/wasm"
	"github.com/crowdcloud/crowd/internal/link"
	"github.com/crowdcloud/crowd/internal/seal"
	"github.com/crowdcloud/crowd/internal/store"
)

// brokerConfig is what a broker process is made of.
type brokerConfig struct {
	Data        string // folder of everything it keeps
	Listen      string // "HOST:PORT"; port 0: any
	URL         string // as people and machines reach it; "": from Listen
	Plain       bool   // no TLS: loopback only
	Proxied     *bool  // a proxy on this machine hands requests on: nobody is local, nobody may operate; nil: as URL and Listen look
	PerGfuel    crowd.UCR
	FeePermille int
	Keep        time.Duration // how long results of ended jobs are kept; 0: 30 days
	Log         *slog.Logger
	Version     string
}

// runningBroker is a broker that serves. Close it.
type runningBroker struct {
	*broker.Broker
	URL      string // for links
	Local    string // as this machine reaches it
	Pin      string // fingerprint of its key
	OwnerKey string // the operator's first key, when the data folder was new; else ""
	Proxied  bool   // scope operate is off

	done chan struct{} // closed when it has ended
	stop context.CancelFunc
	err  error
}

// startBroker opens the store and serves API and link on one port until ctx ends or Close.
func startBroker(ctx context.Context, c brokerConfig) (_ *runningBroker, err error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "make the data folder: %w", err)
	}
	key, err := seal.LoadOrCreateKey(filepath.Join(c.Data, "broker.key"))
	if err != nil {
		return nil, err
	}
	l, err := listen(c)
	if err != nil {
		return nil, err
	}
	r := &runningBroker{Pin: seal.Fingerprint(key.Public().(ed25519.PublicKey)), done: make(chan struct{})}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	r.URL, r.Local = addresses(c, l.Addr())
	cert, err := seal.Certificate(key, certNames(r.URL, r.Local)...)
	if err != nil {
		return nil, err
	}
	st, err := store.Open(ctx, c.Data, store.Options{})
	if err != nil {
		return nil, err
	}
	engine, err := wasm.New(wasm.Options{Log: c.Log})
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	r.Broker, err = broker.New(broker.Config{Dir: c.Data, Store: st, Key: key, URL: r.URL, Log: c.Log, PerGfuel: c.PerGfuel, FeePermille: c.FeePermille, Keep: c.Keep, Version: c.Version, CheckProgram: checker(engine)})
	if err == nil {
		r.OwnerKey, err = r.Bootstrap(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, engine.Close(), st.Close())
	}
	if r.Proxied = proxied(c, l.Addr()); !r.Proxied { // else all come from one network
		l = &link.Door{Listener: l, Full: func(err error) { c.Log.Warn("a network is turned away", "err", err) }}
	}
	if !c.Plain {
		l = tls.NewListener(l, seal.ServerTLS(cert))
	}
	ctx, r.stop = context.WithCancel(ctx)
	go r.serve(ctx, l, st, engine, c) // ends before done is closed
	return r, nil
}

// listen opens the port; without TLS on loopback only.
func listen(c brokerConfig) (net.Listener, error) {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return nil, crowd.Errorf(crowd.Invalid, "", "--listen: wanted HOST:PORT, found %q", c.Listen)
	}
	if c.Plain && !seal.Loopback(host) {
		return nil, crowd.Errorf(crowd.Invalid, "", "without TLS a broker listens on this machine only, not on %s", c.Listen).WithHint("--listen 127.0.0.1:27693, or leave --plain-loopback out")
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, crowd.Errorf(crowd.Conflict, "", "can't listen on %s: %w", c.Listen, err).WithHint("does another broker run? choose another --listen")
	}
	return l, nil
}

// addresses are the URL for links and the one for this machine.
func addresses(c brokerConfig, a net.Addr) (public, local string) {
	scheme := "https://"
	if c.Plain {
		scheme = "http://"
	}
	at, err := netip.ParseAddrPort(a.String())
	local = scheme + a.String()
	public = local
	if err == nil && at.Addr().IsUnspecified() {
		port := at.Port()
		local = scheme + netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String()
		public = local
		if h, err := os.Hostname(); err == nil && h != "" {
			public = scheme + net.JoinHostPort(strings.ToLower(h), portText(port))
		}
	}
	if c.URL != "" {
		public = strings.TrimSuffix(c.URL, "/")
	}
	return public, local
}

// proxied reports whether strangers' requests may come from this machine's own address, through a proxy: said so, or the URL isn't the listener's.
func proxied(c brokerConfig, a net.Addr) bool {
	if c.Proxied != nil || c.URL == "" {
		return c.Proxied != nil && *c.Proxied
	}
	u, err := url.Parse(c.URL)
	at, err2 := netip.ParseAddrPort(a.String())
	if err != nil || err2 != nil {
		return true
	}
	scheme, port := "https", u.Port()
	if c.Plain {
		scheme = "http"
	}
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return u.Scheme != scheme || port != portText(at.Port()) || at.Addr().IsLoopback() && !seal.Loopback(u.Hostname())
}

func portText(p uint16) string {
	_, port, _ := net.SplitHostPort(netip.AddrPortFrom(netip.IPv4Unspecified(), p).String())
	return port
}

func certNames(urls ...string) []string {
	names := []string{"localhost"}
	for _, s := range urls {
		if u, err := url.Parse(s); err == nil && u.Hostname() != "" {
			names = append(names, u.Hostname())
		}
	}
	return names
}

// serve runs the broker's loops and its HTTP server; it ends when ctx does or either fails, and then everything is saved.
func (r *runningBroker) serve(ctx context.Context, l net.Listener, st *store.Store, engine *wasm.Engine, c brokerConfig) {
	defer close(r.done)
	defer r.stop()
	srv := &http.Server{
		Handler:           api.New(r.Broker, api.Options{Log: c.Log, Version: c.Version, TrustLoopback: !r.Proxied}),
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }, // watchers end with it
		ErrorLog:    slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	ran, served := make(chan error, 1), make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()
	go func() { served <- srv.Serve(l) }()
	var errs []error
	select {
	case <-ctx.Done():
	case err := <-served:
		errs = append(errs, err)
		served <- nil
	}
	r.stop()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	if srv.Shutdown(last) != nil {
		_ = srv.Close()
	}
	cancel()
	if err := <-served; err != nil && !errors.Is(err, http.ErrServerClosed) {
		errs = append(errs, err)
	}
	r.err = errors.Join(append(errs, <-ran, engine.Close(), st.Close())...)
}

// Wait returns when the broker has ended.
func (r *runningBroker) Wait() error {
	<-r.done
	return r.err
}

// Close ends the broker and returns when everything is saved.
func (r *runningBroker) Close() error {
	r.stop()
	return r.Wait()
}

// checker says what a program is and needs, or why it can't be taken. A stranger's bytes are parsed in a caged child.
func checker(e *wasm.Engine) func(context.Context, []byte) (crowd.Program, error) {
	return func(ctx context.Context, module []byte) (crowd.Program, error) {
		r, err := e.Check(ctx, module)
		if err != nil {
			return crowd.Program{}, err
		}
		return crowd.Program{Needs: r.Needs, Memory: int64(r.MemoryMinPages) << 16}, nil
	}
}
