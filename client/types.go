package client

import (
	"time"

	"github.com/crowdcloud/crowd"
)

// What the API answers and the page has no noun for. Unknown fields of an answer are ignored, as the API may grow.

// Me is who asks. Without scope read Balances is nil.
type Me struct {
	crowd.Account
	Balances *crowd.Balances `json:"balances,omitempty"`
	Key      crowd.Key       `json:"key"`
}

// NewAccount and NewKey carry a secret, told only once.
type NewAccount struct {
	crowd.Account
	Secret string `json:"secret"`
}

// NewKey is an API key with its secret.
type NewKey struct {
	crowd.Key
	Secret string `json:"secret"`
}

// Grant is credit given by an operator.
type Grant struct {
	ID     string    `json:"id,omitempty"`
	Amount crowd.UCR `json:"amount_ucr"`
}

// Token is a join link and until when it works.
type Token struct {
	Link    string    `json:"link"`
	Expires time.Time `json:"expires"`
}

// List is a page of things; Next is the cursor of the page after it, nil at the end.
type List[T any] struct {
	Items []T     `json:"items"`
	Next  *string `json:"next"`
}
