// Package seal is keys and secrets: Ed25519 key files, API secrets and join tokens, the broker's self-made certificate and
// its pin, and join links.
package seal

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"strings"
)

// letters32 is Crockford's base32 in lower case, as in ids: no i, l, o, u to misread.
var letters32 = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// SecretPrefix starts every API key's secret, so that scanners find leaked ones.
const SecretPrefix = "ck_"

// NewSecret makes an API key's secret: "ck_" and 52 letters, 256 random bits.
func NewSecret() string { return SecretPrefix + random(32) }

// NewToken makes a join token: 16 letters, 80 random bits.
func NewToken() string { return random(10) }

// NewBearer makes the secret of one connection's HTTP requests: 52 letters, 256 random bits.
func NewBearer() string { return random(32) }

// Hash is what is stored of a secret, token or bearer. They carry enough randomness that no salt or stretching is needed.
func Hash(secret string) [32]byte { return sha256.Sum256([]byte(secret)) }

// SecretHint is what may be shown of a secret: "ck_…d41x".
func SecretHint(secret string) string {
	s := strings.TrimPrefix(secret, SecretPrefix)
	if len(s) < 20 {
		return SecretPrefix + "…"
	}
	return SecretPrefix + "…" + s[len(s)-4:]
}

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, says its contract
	return letters32.EncodeToString(b)
}
