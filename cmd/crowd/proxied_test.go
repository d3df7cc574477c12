package main

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

// Behind a proxy on the broker's machine nobody operates: everybody looks local there.
func TestProxiedNobodyOperates(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		url     string
		proxied *bool
		want    int
	}{{"", nil, 200}, {"", &yes, 403}, {"https://cloud.example", nil, 403}, {"https://cloud.example", &no, 200}} {
		b, err := startBroker(t.Context(), brokerConfig{Data: t.TempDir(), Listen: "127.0.0.1:0", Plain: true, URL: c.url, Proxied: c.proxied})
		must(t, err)
		r, err := http.NewRequestWithContext(t.Context(), "GET", b.Local+"/v1/status", nil)
		must(t, err)
		r.Header.Set("Authorization", "Bearer "+b.OwnerKey)
		resp, err := http.DefaultClient.Do(r)
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("url %q, proxied %v: %d", c.url, c.proxied, resp.StatusCode)
		}
		must(t, b.Close())
	}
	for _, c := range []struct {
		url, at string
		plain   bool
		want    bool
	}{
		{"https://broker.example:27693", "0.0.0.0:27693", false, false},
		{"https://broker.example", "[::]:443", false, false},
		{"https://127.0.0.1:27693", "127.0.0.1:27693", false, false},
		{"http://localhost:80", "127.0.0.1:80", true, false},
		{"https://broker.example", "0.0.0.0:27693", false, true},
		{"https://broker.example:27693", "127.0.0.1:27693", false, true},
		{"https://localhost:27693", "127.0.0.1:27693", true, true},
		{"%", "127.0.0.1:27693", true, true},
	} {
		at, err := net.ResolveTCPAddr("tcp", c.at)
		must(t, err)
		if got := proxied(brokerConfig{URL: c.url, Plain: c.plain}, at); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// A time that is over says what the broker did in it.
func TestTimeoutNamesTheBroker(t *testing.T) {
	emptyHome(t)
	testDelays = []time.Duration{time.Minute}
	t.Cleanup(func() { testDelays = nil })
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	must(t, err)
	t.Setenv("CROWD_BROKER", "http://"+l.Addr().String())
	t.Setenv("CROWD_KEY", "ck_0123456789abcdefghjk")
	for _, what := range []string{"no answer", "connection refused"} {
		code, out, errs := crowdRun(t, t.Context(), "ls", "--timeout", "100ms")
		want := "crowd: " + l.Addr().String() + " doesn't answer: " + what + ", 1 try in 1 s; --timeout "
		if code != crowd.Unavailable.Exit() || out != "" || !strings.HasPrefix(errs, want) || !strings.Contains(errs, "(network.broker)") {
			t.Errorf("%d %q\n%s", code, out, errs)
		}
		l.Close()
	}
}
