package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/crowdcloud/crowd"
)

func TestSecrets(t *testing.T) {
	s := NewSecret()
	if !strings.HasPrefix(s, "ck_") || len(s) != 3+52 || s == NewSecret() {
		t.Error(s)
	}
	if h := SecretHint(s); h != "ck_…"+s[len(s)-4:] {
		t.Error(h)
	}
	if SecretHint("ck_short") != "ck_…" {
		t.Error("hint tells a short secret")
	}
	if k := NewToken(); len(k) != 16 || !onlyLetters(k) {
		t.Error(k)
	}
	if Hash(s) == Hash(NewSecret()) {
		t.Error("hash")
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host.key")
	if _, err := LoadKey(path); !crowd.KindIs(err, crowd.NotFound) {
		t.Error(err)
	}
	var wg sync.WaitGroup
	keys := make([]ed25519.PrivateKey, 8)
	for i := range keys {
		wg.Go(func() { keys[i], _ = LoadOrCreateKey(path) })
	}
	wg.Wait()
	for _, k := range keys {
		if len(k) != ed25519.PrivateKeySize || !k.Equal(keys[0]) {
			t.Error("racing processes got different keys")
		}
	}
	if _, err := CreateKey(path); !crowd.KindIs(err, crowd.Conflict) {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); left != nil {
		t.Error("left", left)
	}
	if !modesTell {
		return
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Error(st.Mode())
	}
	_ = os.Chmod(path, 0o640)
	if _, err := LoadKey(path); !crowd.KindIs(err, crowd.Denied) || !strings.Contains(crowd.AsError(err).Hint, "chmod 600") {
		t.Error(err)
	}
	_ = os.WriteFile(path, []byte("junk"), 0o600)
	_ = os.Chmod(path, 0o600)
	if _, err := LoadKey(path); !crowd.KindIs(err, crowd.Invalid) {
		t.Error(err)
	}
}

func TestPinnedTLS(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	cert, err := Certificate(key, "cloud.example", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	again, _ := Certificate(key, "cloud.example", "127.0.0.1")
	if !bytes.Equal(cert.Certificate[0], again.Certificate[0]) {
		t.Error("not deterministic")
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.TLS = ServerTLS(cert)
	srv.StartTLS()
	defer srv.Close()
	get := func(cfg *tls.Config) error {
		c := http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
		resp, err := c.Get(srv.URL)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	fp := Fingerprint(key.Public().(ed25519.PublicKey))
	if len(fp) != FingerprintLetters {
		t.Error(fp)
	}
	if err := get(PinnedTLS(fp)); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", fp[:8], fp[:25] + "!", Fingerprint(make([]byte, 32))} {
		if err := get(PinnedTLS(bad)); !errors.Is(err, ErrBrokerKey) {
			t.Error(bad, err)
		}
	}
	// the right certificate without its key is no use
	thief := cert
	thief.PrivateKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32))
	a, b := net.Pipe()
	defer a.Close()
	go func() { _ = tls.Server(b, &tls.Config{Certificates: []tls.Certificate{thief}}).Handshake(); b.Close() }()
	if err := tls.Client(a, PinnedTLS(fp)).Handshake(); err == nil {
		t.Error("a stolen certificate was believed")
	}
}

func TestJoinLink(t *testing.T) {
	l := JoinLink{Broker: "https://cloud.example:27693", Token: NewToken(), Fingerprint: Fingerprint(make([]byte, 32))}
	if got, err := ParseJoinLink(" " + l.String() + "\n"); err != nil || got != l {
		t.Error(got, err)
	}
	l.Broker = "http://127.0.0.1:1"
	if _, err := ParseJoinLink(l.String()); err != nil {
		t.Error(err)
	}
	tok, fp := l.Token, l.Fingerprint
	for _, bad := range []string{
		"", "https://x", "https://x/j/" + tok, "https://x/j/" + tok + "#" + fp[:8], "https://x/j/short#" + fp, "http://cloud.example/j/" + tok + "#" + fp,
		"ftp://x/j/" + tok + "#" + fp, "https://u:p@x/j/" + tok + "#" + fp, "https://x/j/" + tok + "?q=1#" + fp, "https://x/j/" + strings.ToUpper(tok) + "#" + fp,
		"https:///j/" + tok + "#" + fp, "https://x/y/" + tok + "#" + fp, "://", "https://x/j/" + tok + "/..#" + fp,
	} {
		_, err := ParseJoinLink(bad)
		if !crowd.KindIs(err, crowd.Invalid) || strings.Contains(err.Error(), tok) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseJoinLink(f *testing.F) {
	f.Add("https://cloud.example/j/q7k4m2xdp3ws9fza#00000000000000000000000000")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseJoinLink(s)
		if err != nil {
			return
		}
		if again, err := ParseJoinLink(l.String()); err != nil || again != l {
			t.Errorf("%q: %+v, then %+v, %v", s, l, again, err)
		}
	})
}
