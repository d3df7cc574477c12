package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/crowdcloud/crowd/internal/seal"
)

// bareTLS is the memory that n idle TLS connections take and the CPU of a round trip of as many bytes as a renewal has, both ends in this
// process, halved: the references for a connected host.
func bareTLS(ctx context.Context, n int) (bytes, micros float64, err error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return 0, 0, err
	}
	cert, err := seal.Certificate(key, "localhost")
	if err != nil {
		return 0, 0, err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", seal.ServerTLS(cert))
	if err != nil {
		return 0, 0, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.Close()
	echo := func(c net.Conn) {
		defer c.Close()
		_, _ = io.Copy(c, c)
	}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _, _ = c.Write([]byte{1}); echo(c) })
		}
	})
	heap := func() uint64 {
		debug.FreeOSMemory()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := heap()
	conns := make([]*tls.Conn, n)
	for i := range conns {
		d := tls.Dialer{Config: seal.PinnedTLS(seal.Fingerprint(key.Public().(ed25519.PublicKey)))}
		c, err := d.DialContext(ctx, "tcp", l.Addr().String())
		if err != nil {
			return 0, 0, err
		}
		defer c.Close()
		conns[i] = c.(*tls.Conn)
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			return 0, 0, err
		}
	}
	bytes = float64(heap()-before) / float64(n) / 2
	cpu0, err := cpuOf(os.Getpid())
	if err != nil {
		return 0, 0, err
	}
	message := make([]byte, 400)
	for _, c := range conns {
		if _, err := c.Write(message); err != nil {
			return 0, 0, err
		}
		if _, err := io.ReadFull(c, message); err != nil {
			return 0, 0, err
		}
	}
	cpu1, err := cpuOf(os.Getpid())
	return bytes, float64((cpu1 - cpu0).Nanoseconds()) / float64(n) / 2000, err
}
