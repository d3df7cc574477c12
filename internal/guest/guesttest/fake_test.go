package guesttest

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crowdcloud/crowd"
)

func TestFake(t *testing.T) {
	TestEngine(t, func(*testing.T) Subject { return Subject{Engine: &Fake{}, Program: []byte("fake")} })
}

func TestFakeTakesItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &Fake{UnitTime: time.Minute, Twist: func(_ crowd.Plan, _ *crowd.UnitResult, c *crowd.UnitContent) { c.Stdout = []byte("a lie") }}
		s := &suite{Subject: Subject{Engine: f}, blobs: Blobs{}}
		s.program = s.blobs.Add(nil)
		slot := s.slot(t, jobA)
		begun := time.Now()
		time.AfterFunc(90*time.Second, func() { slot.Freeze() })
		time.AfterFunc(100*time.Second, func() { slot.Thaw() })
		o, c, err := slot.Run(context.Background(), s.task([]string{"a"}, []string{"b"}), s.blobs, nil)
		if err != nil || time.Since(begun) != 130*time.Second || string(c[1].Stdout) != "a lie" || o.Units[1].Stdout != ref(c[1].Stdout) {
			t.Errorf("%v after %v: %+v", err, time.Since(begun), o)
		}
	})
}
