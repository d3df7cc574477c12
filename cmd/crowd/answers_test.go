package main

import (
	"reflect"
	"slices"
	"testing"

	"github.com/crowdcloud/crowd/client"
	"github.com/crowdcloud/crowd/internal/broker"
)

// The SDK may not import the broker, so what the API answers stands in both. They must not drift apart.
func TestClientKnowsEveryAnswer(t *testing.T) {
	for _, x := range []struct{ theirs, ours any }{
		{broker.Balances{}, client.Balances{}}, {broker.JobDetail{}, client.JobDetail{}}, {broker.HostShare{}, client.HostShare{}}, {broker.HostRow{}, client.HostRow{}},
		{broker.UnitRow{}, client.UnitRow{}}, {broker.Why{}, client.Why{}}, {broker.Status{}, client.Status{}},
	} {
		ours := fields(reflect.TypeOf(x.ours))
		for _, f := range fields(reflect.TypeOf(x.theirs)) {
			if !slices.Contains(ours, f) {
				t.Errorf("%T lacks %s of %T", x.ours, f, x.theirs)
			}
		}
	}
}

// fields are a struct's JSON fields with their kinds, embedded ones too.
func fields(t reflect.Type) (all []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			all = append(all, fields(f.Type)...)
			continue
		}
		all = append(all, f.Tag.Get("json")+" "+f.Type.Kind().String())
	}
	return all
}
