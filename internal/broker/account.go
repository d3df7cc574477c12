package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/ledger"
	"github.com/crowdcloud/crowd/internal/seal"
	"github.com/crowdcloud/crowd/internal/store"
)

// Bootstrap makes the operator's account on an empty store and returns its first key's secret, once; later it returns "".
func (b *Broker) Bootstrap(ctx context.Context) (secret string, err error) {
	b.mu.Lock()
	empty := len(b.accounts) == 0
	b.mu.Unlock()
	if !empty {
		return "", nil
	}
	return b.addAccount(ctx, "operator", crowd.AccountID{}, []crowd.Scope{crowd.ScopeOperate, crowd.ScopeRead, crowd.ScopeOrder, crowd.ScopeLend}, nil)
}

// Authenticate finds who a secret belongs to. loopback says that the request came from this machine.
func (b *Broker) Authenticate(ctx context.Context, secret string, loopback bool) (Caller, error) {
	unknown := &crowd.Error{Kind: crowd.Denied, Status: 401, Reason: crowd.CustomerKey, Message: "the broker knows no key " + seal.SecretHint(secret), Hint: "crowd account login"}
	if !strings.HasPrefix(secret, "ck_") {
		return Caller{}, unknown
	}
	k, err := b.st.KeyByHash(ctx, seal.Hash(secret))
	if crowd.KindIs(err, crowd.NotFound) {
		return Caller{}, unknown
	}
	if err != nil {
		return Caller{}, err
	}
	if !k.Expires.IsZero() && !b.now().Before(k.Expires) {
		return Caller{}, &crowd.Error{Kind: crowd.Denied, Status: 401, Reason: crowd.CustomerKey, Message: fmt.Sprintf("the key %s has expired", k.Hint), Hint: "crowd account login"}
	}
	b.mu.Lock()
	a := b.accounts[k.Account]
	b.mu.Unlock()
	if a == nil {
		return Caller{}, unknown
	}
	if a.Banned != "" {
		return Caller{}, crowd.Errorf(crowd.Denied, a.Banned, "the account %s is banned", a.Name)
	}
	return Caller{Account: *a, Key: k, Loopback: loopback}, nil
}

// need refuses a caller whose key lacks a scope. Operate works from this machine only.
func need(c Caller, s crowd.Scope) error {
	if !c.Key.Has(s) {
		return crowd.Errorf(crowd.Denied, crowd.CustomerScope, "key %s may not %s", c.Key.Hint, s).WithHint("crowd account keys create --scope %s", s)
	}
	if s == crowd.ScopeOperate && !c.Loopback {
		return crowd.Errorf(crowd.Denied, crowd.CustomerScope, "scope operate works from the broker's own machine only")
	}
	return nil
}

// operates reports whether the caller sees everything.
func operates(c Caller) bool { return need(c, crowd.ScopeOperate) == nil }

// CreateAccount makes an account and its first key (read, order, lend), whose secret is returned only here.
func (b *Broker) CreateAccount(ctx context.Context, c Caller, name string) (crowd.Account, string, error) {
	if err := need(c, crowd.ScopeOperate); err != nil {
		return crowd.Account{}, "", err
	}
	if err := checkName("name", name); err != nil {
		return crowd.Account{}, "", err
	}
	var a crowd.Account
	secret, err := b.addAccount(ctx, name, c.Account.ID, []crowd.Scope{crowd.ScopeRead, crowd.ScopeOrder, crowd.ScopeLend}, &a)
	return a, secret, err
}

func (b *Broker) addAccount(ctx context.Context, name string, actor crowd.AccountID, scopes []crowd.Scope, out *crowd.Account) (string, error) {
	a := crowd.Account{Name: name, Created: b.now()}
	mint(b, &a.ID)
	k, secret := b.makeKey(a.ID, scopes, 0, 0)
	ev := b.event(a.ID.String(), a.ID, "account.created", "", name, crowd.EventData{})
	if !actor.IsZero() {
		ev.Event.Actor = actor.String()
	}
	if err := b.commit(ctx, store.PutAccount{Account: a}, store.PutKey{Key: k}, ev); err != nil {
		if crowd.KindIs(err, crowd.Conflict) {
			return "", crowd.Errorf(crowd.Conflict, "", "an account is named %s already", name)
		}
		return "", err
	}
	b.mu.Lock()
	b.accounts[a.ID] = &a
	b.mu.Unlock()
	if out != nil {
		*out = a
	}
	return secret, nil
}

func (b *Broker) makeKey(a crowd.AccountID, scopes []crowd.Scope, spendCap crowd.UCR, ttl time.Duration) (crowd.Key, string) {
	secret := seal.NewSecret()
	k := crowd.Key{Account: a, Hash: seal.Hash(secret), Hint: seal.SecretHint(secret), Scopes: scopes, Cap: spendCap, Created: b.now()}
	mint(b, &k.ID)
	if ttl > 0 {
		k.Expires = k.Created.Add(ttl)
	}
	return k, secret
}

// CreateKey makes a key that may do no more than the caller's. A caller whose key has a cap makes none: each would have the cap anew.
func (b *Broker) CreateKey(ctx context.Context, c Caller, scopes []crowd.Scope, spendCap crowd.UCR, ttl time.Duration) (crowd.Key, string, error) {
	if len(scopes) == 0 {
		return crowd.Key{}, "", crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "a key wants at least one scope: read, order, lend, s3 or operate")
	}
	for _, s := range scopes {
		if !slices.Contains(crowd.Scopes, s) {
			return crowd.Key{}, "", crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "there is no scope %q", clipText(string(s))).WithHint("read, order, lend, s3 or operate")
		}
		if err := need(c, s); err != nil {
			return crowd.Key{}, "", err
		}
	}
	if spendCap < 0 || ttl < 0 {
		return crowd.Key{}, "", crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "cap and ttl can't be negative")
	}
	if c.Key.Cap > 0 {
		return crowd.Key{}, "", crowd.Errorf(crowd.Denied, crowd.CustomerScope, "key %s has a spending cap and may make no keys", c.Key.Hint).WithHint("make it with a key that has no cap")
	}
	have, err := b.st.Keys(ctx, c.Account.ID)
	if err != nil {
		return crowd.Key{}, "", err
	}
	if len(have) >= crowd.Limits.Keys {
		return crowd.Key{}, "", crowd.Errorf(crowd.Exhausted, crowd.CustomerQuota, "%s has %d keys, the most there may be", c.Account.Name, len(have))
	}
	k, secret := b.makeKey(c.Account.ID, slices.Clone(scopes), spendCap, ttl)
	if !c.Key.Expires.IsZero() && (k.Expires.IsZero() || k.Expires.After(c.Key.Expires)) {
		k.Expires = c.Key.Expires
	}
	ev := b.event(k.ID.String(), c.Account.ID, "key.created", "", k.Hint, crowd.EventData{})
	ev.Event.Actor = c.Account.ID.String()
	if err := b.commit(ctx, store.PutKey{Key: k}, ev); err != nil {
		return crowd.Key{}, "", err
	}
	return k, secret, nil
}

// Keys lists the caller's keys.
func (b *Broker) Keys(ctx context.Context, c Caller) ([]crowd.Key, error) {
	if err := need(c, crowd.ScopeRead); err != nil {
		return nil, err
	}
	return b.st.Keys(ctx, c.Account.ID)
}

// DeleteKey removes a key of the caller by its id, short id or hint: itself, or one that may do no more than it.
func (b *Broker) DeleteKey(ctx context.Context, c Caller, ref string) error {
	keys, err := b.st.Keys(ctx, c.Account.ID)
	if err != nil {
		return err
	}
	var found []crowd.Key
	for _, k := range keys {
		if k.ID.String() == ref || k.ID.Short() == ref || k.Hint == ref {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 0:
		return notFound("key", ref)
	case 1:
		for _, s := range found[0].Scopes {
			if err := need(c, s); err != nil && found[0].ID != c.Key.ID {
				return err
			}
		}
		ev := b.event(found[0].ID.String(), c.Account.ID, "key.deleted", "", found[0].Hint, crowd.EventData{})
		ev.Event.Actor = c.Account.ID.String()
		return b.commit(ctx, store.DeleteKey{Key: found[0].ID}, ev)
	}
	return ambiguous(ref, found, func(k crowd.Key) string { return k.ID.String() })
}

// Grant gives an account credit; the same id twice is one grant, and Conflict if it was another account's or amount.
func (b *Broker) Grant(ctx context.Context, c Caller, account string, amount crowd.UCR, id string) error {
	if err := need(c, crowd.ScopeOperate); err != nil {
		return err
	}
	if amount <= 0 || amount > 1e9*crowd.Credit {
		return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "a grant is more than 0 and at most 1,000,000,000 cr")
	}
	a, err := b.findAccount(account)
	if err != nil {
		return err
	}
	if id == "" {
		var r crowd.RequestID
		mint(b, &r)
		id = r.String()
	}
	if clipTo(id, 120) != id {
		return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "a grant's id has at most 120 characters, all of them visible")
	}
	legs, err := ledger.Deposit(id, a.ID, amount, b.now())
	if err != nil {
		return err
	}
	leave, ok := b.idem.enter("grant\x00" + id)
	if !ok {
		return crowd.Errorf(crowd.Conflict, "", "a grant with this id is being made")
	}
	defer leave()
	switch old, err := b.st.Txn(ctx, legs[0].Txn); {
	case err == nil && slices.EqualFunc(old, legs, func(x, y crowd.Posting) bool { return x.Book == y.Book && x.Amount == y.Amount }):
		return nil
	case err == nil:
		e := crowd.Errorf(crowd.Conflict, "", "the id %s was used for another grant", clipText(id))
		for _, l := range old {
			if l.Amount > 0 {
				e.Message += fmt.Sprintf(": %s to %s", money(l.Amount), l.Book)
			}
		}
		return e
	case !crowd.KindIs(err, crowd.NotFound):
		return err
	}
	ev := b.event(a.ID.String(), a.ID, "account.granted", "", money(amount), crowd.EventData{UCR: amount})
	ev.Event.Actor = c.Account.ID.String()
	return b.commit(ctx, store.Post{Postings: legs}, ev)
}

// findAccount finds an account by id, short id or name.
func (b *Broker) findAccount(ref string) (crowd.Account, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []crowd.Account
	for _, a := range b.accounts {
		if a.Name == ref || a.ID.String() == ref {
			return *a, nil
		}
		if a.ID.Short() == ref {
			found = append(found, *a)
		}
	}
	switch len(found) {
	case 0:
		return crowd.Account{}, notFound("account", ref)
	case 1:
		return found[0], nil
	}
	return crowd.Account{}, ambiguous(ref, found, func(a crowd.Account) string { return a.ID.String() })
}

// Balances is the caller's money.
func (b *Broker) Balances(ctx context.Context, c Caller) (out crowd.Balances, err error) {
	if err := need(c, crowd.ScopeRead); err != nil {
		return out, err
	}
	if out.Free, err = b.st.Balance(ctx, crowd.BalanceBook(c.Account.ID)); err != nil {
		return out, err
	}
	if out.Pending, err = b.st.Balance(ctx, crowd.PendingBook(c.Account.ID)); err != nil {
		return out, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, j := range b.jobs {
		if j.Account == c.Account.ID {
			out.Held += j.left
		}
	}
	return out, nil
}

// Statement lists the postings of the caller's balance, newest first.
func (b *Broker) Statement(ctx context.Context, c Caller, after string, limit int) ([]crowd.Posting, string, error) {
	if err := need(c, crowd.ScopeRead); err != nil {
		return nil, "", err
	}
	limit = PageLimit(limit)
	p, err := b.st.Postings(ctx, crowd.BalanceBook(c.Account.ID), after, limit)
	if err != nil || len(p) < limit {
		return p, "", err
	}
	return p, store.Cursor(p[len(p)-1]), nil
}

// PageLimit is how long a page is that n is asked for: 50 if 0, and 1000 at most.
func PageLimit(n int) int {
	if n <= 0 {
		return 50
	}
	return min(n, 1000)
}

// inflight holds the names of what runs now and may run only once at a time.
type inflight struct {
	mu sync.Mutex
	m  map[string]bool
}

func (u *inflight) enter(name string) (leave func(), ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.m[name] {
		return nil, false
	}
	if u.m == nil {
		u.m = map[string]bool{}
	}
	u.m[name] = true
	return func() {
		u.mu.Lock()
		delete(u.m, name)
		u.mu.Unlock()
	}, true
}

// IdemBegin starts a request under an idempotency key: an answer that was kept is returned (status other than 0); else the caller does the work
// and says done with what it answered. The same key while its first request runs is Conflict, with another body Invalid.
func (b *Broker) IdemBegin(ctx context.Context, c Caller, key string, bodyHash [32]byte) (int, []byte, func(int, []byte) error, error) {
	if key == "" || len(key) > 200 {
		return 0, nil, nil, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "an idempotency key has 1 to 200 characters")
	}
	kept := func() (int, []byte, error) { // 0: there is none
		k, err := b.st.Idem(ctx, c.Account.ID, key)
		switch {
		case crowd.KindIs(err, crowd.NotFound):
			return 0, nil, nil
		case err == nil && k.BodyHash != bodyHash:
			err = crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "this idempotency key was used for another request")
		}
		return k.Status, k.Answer, err
	}
	if status, answer, err := kept(); err != nil || status != 0 { // many may ask for it again at once
		return status, answer, nil, err
	}
	free, ok := b.idem.enter(c.Account.ID.String() + "\x00" + key)
	if !ok {
		return 0, nil, nil, crowd.Errorf(crowd.Conflict, "", "the first request with this idempotency key still runs").WithHint("send it again in a second")
	}
	if status, answer, err := kept(); err != nil || status != 0 { // it ended in between
		free()
		return status, answer, nil, err
	}
	return 0, nil, func(status int, answer []byte) error {
		defer free()
		if status == 0 || status >= 500 || status == 429 { // nothing was done: the next try is a first one
			return nil
		}
		err := b.commit(context.WithoutCancel(ctx), store.PutIdem{Account: c.Account.ID, Key: key, BodyHash: bodyHash, Status: status, Answer: answer, At: b.now()})
		return err
	}, nil
}

type idemKey struct{}

// WithIdem makes Submit keep its answer (201 and the job as JSON) under an idempotency key in the very transaction that makes the job, so that a
// broker that dies before it answers doesn't order twice.
func WithIdem(ctx context.Context, key string, bodyHash [32]byte) context.Context {
	return context.WithValue(ctx, idemKey{}, store.PutIdem{Key: key, BodyHash: bodyHash})
}

// rates are token buckets by account.
type rates struct {
	mu sync.Mutex
	m  map[crowd.AccountID]*bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

// Allow takes a token from an account's bucket: Exhausted, broker.rate when it is empty.
func (b *Broker) Allow(account crowd.AccountID) error {
	now := b.now()
	b.rates.mu.Lock()
	defer b.rates.mu.Unlock()
	if b.rates.m == nil {
		b.rates.m = map[crowd.AccountID]*bucket{}
	}
	k := b.rates.m[account]
	if k == nil {
		k = &bucket{tokens: crowd.Limits.RequestBurst, at: now}
		b.rates.m[account] = k
	}
	k.tokens = min(crowd.Limits.RequestBurst, k.tokens+now.Sub(k.at).Seconds()*crowd.Limits.RequestsPerSecond)
	k.at = now
	if k.tokens < 1 {
		return crowd.Errorf(crowd.Exhausted, crowd.BrokerRate, "too many requests at once").WithHint("at most %.0f a second", crowd.Limits.RequestsPerSecond)
	}
	k.tokens--
	return nil
}
