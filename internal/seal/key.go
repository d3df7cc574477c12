package seal

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/crowdcloud/crowd"
)

const pemType = "PRIVATE KEY"

// LoadKey reads an Ed25519 key file (PKCS #8 in PEM). NotFound if there is none, Denied if others than its owner can read
// it, Invalid if it is no such key.
func LoadKey(path string) (ed25519.PrivateKey, error) {
	if err := private(path); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "read key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemType {
		return nil, crowd.Errorf(crowd.Invalid, "", "%s holds no private key", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, crowd.Errorf(crowd.Invalid, "", "%s: %w", path, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, crowd.Errorf(crowd.Invalid, "", "%s holds a key of another kind, wanted Ed25519", path)
	}
	return key, nil
}

// private refuses files that others can read, where the system's modes say so.
func private(path string) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return crowd.Errorf(crowd.NotFound, "", "no key file %s: %w", path, err)
	case err != nil:
		return crowd.Errorf(crowd.Internal, "", "look at key file: %w", err)
	case modesTell && st.Mode().Perm()&0o077 != 0:
		return crowd.Errorf(crowd.Denied, "", "others can read the key %s (mode %04o)", path, st.Mode().Perm()).
			WithHint("chmod 600 %s; if somebody may have read it, make a new one", path)
	}
	return nil
}

// CreateKey makes a key and its file, whole or not at all, readable by its owner only. Conflict if there is one already.
func CreateKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "encode key: %w", err)
	}
	err = writeNew(path, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}))
	if errors.Is(err, fs.ErrExist) {
		return nil, crowd.Errorf(crowd.Conflict, "", "there is a key already: %s", path)
	}
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "write key: %w", err)
	}
	return key, nil
}

// LoadOrCreateKey is LoadKey, or CreateKey if there is none. Two processes that race get the same key.
func LoadOrCreateKey(path string) (ed25519.PrivateKey, error) {
	key, err := LoadKey(path)
	if !crowd.KindIs(err, crowd.NotFound) {
		return key, err
	}
	if key, err = CreateKey(path); crowd.KindIs(err, crowd.Conflict) {
		return LoadKey(path)
	}
	return key, err
}

// writeNew puts b durably at path, never over something that is there.
func writeNew(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	// a file system without hard links: check, then rename
	if _, err := os.Lstat(path); err == nil {
		return fs.ErrExist
	}
	return os.Rename(f.Name(), path)
}
