package seal

import (
	"net"
	"net/netip"
	"net/url"
	"strings"

	"github.com/crowdcloud/crowd"
)

// JoinLink is what a hoster is given: where the broker is, a token that works once, and the pin of the broker's key. The pin stands
// after a #, so that a browser that opens the link doesn't send it anywhere.
type JoinLink struct {
	Broker      string // "https://HOST:PORT"; http on loopback only
	Token       string
	Fingerprint string
}

func (l JoinLink) String() string { return l.Broker + "/j/" + l.Token + "#" + l.Fingerprint }

// ParseJoinLink reads a link. Invalid says what is wrong with it; a token is never quoted.
func ParseJoinLink(s string) (JoinLink, error) {
	bad := func(what string) (JoinLink, error) {
		return JoinLink{}, crowd.Errorf(crowd.Invalid, crowd.BrokerToken, "not a join link: %s", what).
			WithHint("it looks like https://cloud.example/j/q7k4m2xdp3ws9fza#… ; quote it in a shell. a new one: crowd host token")
	}
	u, err := url.Parse(strings.TrimSpace(s))
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return bad("wanted https://HOST/j/TOKEN#FINGERPRINT")
	}
	token, ok := strings.CutPrefix(u.Path, "/j/")
	if !ok || len(token) < 12 || len(token) > 64 || !onlyLetters(token) {
		return bad("its token is missing or malformed")
	}
	if len(u.Fragment) != FingerprintLetters || !onlyLetters(u.Fragment) {
		return bad("the broker's fingerprint after # is missing or malformed")
	}
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && Loopback(u.Hostname()):
	default:
		return bad("wanted https (http is for this machine itself)")
	}
	return JoinLink{Broker: u.Scheme + "://" + u.Host, Token: token, Fingerprint: u.Fragment}, nil
}

// Loopback reports whether a URL's host name is this machine by itself, without asking any resolver.
func Loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

func onlyLetters(s string) bool {
	return strings.Trim(s, "0123456789abcdefghjkmnpqrstvwxyz") == ""
}
