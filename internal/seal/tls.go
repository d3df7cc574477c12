package seal

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"time"

	"github.com/crowdcloud/crowd"
)

// Certificate makes a self-signed certificate of key for the names and addresses given. Equal arguments give equal bytes. Clients
// trust it by its public key (PinnedTLS), not by its names or dates.
func Certificate(key ed25519.PrivateKey, names ...string) (tls.Certificate, error) {
	pub := key.Public().(ed25519.PublicKey)
	sum := sha256.Sum256(pub)
	t := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(sum[:16]),
		Subject:               pkix.Name{CommonName: "crowd broker " + Fingerprint(pub)[:8]},
		NotBefore:             time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, pub, key)
	if err != nil {
		return tls.Certificate{}, crowd.Errorf(crowd.Internal, "", "make certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, crowd.Errorf(crowd.Internal, "", "make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// ServerTLS is the broker's side: TLS 1.3 only, no tickets (links live long; a ticket would only cost memory).
func ServerTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
	}
}

// FingerprintLetters is how long a fingerprint is.
const FingerprintLetters = 26

// Fingerprint names a public key: the first 128 bits of its SHA-256 as 26 letters. Long enough that nobody can grind another key
// with the same one, as could be done in minutes with 32 bits.
func Fingerprint(pub []byte) string {
	sum := sha256.Sum256(pub)
	return letters32.EncodeToString(sum[:16])
}

// FingerprintIs compares without telling by its time how far they agree.
func FingerprintIs(pub []byte, fingerprint string) bool {
	return subtle.ConstantTimeCompare([]byte(Fingerprint(pub)), []byte(fingerprint)) == 1
}

// ErrBrokerKey is the refusal of a broker whose key isn't the pinned one.
var ErrBrokerKey = crowd.Errorf(crowd.Denied, crowd.BrokerKey, "the broker's key isn't the one that was pinned").
	WithHint("if the operator says that it changed: join again by a new link, or crowd account login")

// Pin returns a check of a broker's key against a fingerprint: ErrBrokerKey if it differs.
func Pin(fingerprint string) func(key []byte) error {
	return func(key []byte) error {
		if !FingerprintIs(key, fingerprint) {
			return ErrBrokerKey
		}
		return nil
	}
}

// PinnedTLS is the client's side: TLS 1.3 to whoever holds the key of that fingerprint, whatever its certificate's names and dates
// say. Another key is ErrBrokerKey. The result may be shared; clone it to change it.
func PinnedTLS(fingerprint string) *tls.Config {
	pin := Pin(fingerprint)
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection does it, on resumption too
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return ErrBrokerKey
			}
			pub, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
			if !ok {
				return ErrBrokerKey
			}
			return pin(pub)
		},
	}
}
