package sim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func machines(hosts ...Host) []Host {
	for i := range hosts {
		h := &hosts[i]
		if h.Owner == "" {
			h.Owner = h.Name
		}
		if h.Speed == 0 {
			h.Speed = 1
		}
		h.Slots = 1
	}
	return hosts
}

// stories are small worlds in which nothing happens but what they say.
var stories = []struct {
	name string
	o    Options
	want []string // lines, in this order, whatever else there is
}{
	{"late report paid", Options{
		Hosts: machines(Host{Name: "ada"}, Host{Name: "bob", Speed: 0.2}),
		Jobs:  []Job{{Name: "A", Units: 1, Quorum: 1, Gfuel: 10, At: time.Second}},
		Acts:  []Act{{At: 5 * time.Second, Deed: Sleep, For: 25 * time.Second}},
	}, []string{"leases chunk A:0.1 to ada", "chunk A:0.1 expired", "leases chunk A:0.2 to bob", "ada       report chunk A:0.1", "ada +"}},
	{"decided report unpaid", Options{
		Hosts: machines(Host{Name: "ada"}, Host{Name: "bob"}),
		Jobs:  []Job{{Name: "A", Units: 1, Quorum: 1, Gfuel: 10, At: time.Second}},
		Acts:  []Act{{At: 5 * time.Second, Deed: Cut, For: 40 * time.Second}},
	}, []string{"leases chunk A:0.1 to ada", "ada       has done chunk A:0.1", "leases chunk A:0.2 to bob", "bob +", "ada       report chunk A:0.1 b3:", "decided, unpaid"}},
	{"clone voided", Options{
		Hosts: machines(Host{Name: "ada"}, Host{Name: "bob", Speed: 0.5}),
		Jobs:  []Job{{Name: "A", Units: 1, Quorum: 1, Gfuel: 10, At: time.Second}},
		Acts:  []Act{{At: 5 * time.Second, Deed: Clone}},
	}, []string{"leases chunk A:0.1 to ada", "a clone, its session is void", "chunk A:0.1 is void: host.cloned", "leases chunk A:0.2 to bob", "bob +"}},
	{"restart doesn't lease early", Options{
		Hosts: machines(Host{Name: "ada"}, Host{Name: "bob"}),
		Jobs:  []Job{{Name: "A", Units: 1, Quorum: 1, Gfuel: 10, At: time.Second}},
		Acts:  []Act{{At: 5 * time.Second, Deed: Cut, For: 60 * time.Second}, {At: 6 * time.Second, Deed: Kill, For: 2 * time.Second}},
	}, []string{"leases chunk A:0.1 to ada", "dies", "00:08.000 broker    starts", "00:22.000 ada       chunk A:0.1 expired", "00:22.000 broker    leases chunk A:0.2 to bob"}},
	{"conviction opens an unchecked chunk", Options{
		Hosts: machines(Host{Name: "ada", Lies: 1}, Host{Name: "bob"}, Host{Name: "cleo"}),
		Jobs:  []Job{{Name: "U", Units: 12, Chunk: 1, Quorum: 1, Gfuel: 4, At: time.Second}, {Name: "V", Units: 1, Quorum: 2, Gfuel: 4, At: 3 * time.Second}},
	}, []string{"U:0 v1", "ada +", "ada       is proved wrong", "chunk U:0 v1 is taken back", "chunk U:0 v2", "U is done", "paid 0.096 cr"}},
	{"restore takes an order back", Options{
		Seed:  3,
		Hosts: machines(Host{Name: "ada"}, Host{Name: "bob"}),
		Jobs:  []Job{{Name: "A", Units: 2, Chunk: 1, Quorum: 1, Gfuel: 10, At: 2 * time.Second}},
		Acts:  []Act{{At: 1500 * time.Millisecond, Deed: Backup}, {At: 8 * time.Second, Deed: Haunt, For: time.Second}, {At: 20 * time.Second, Deed: Break}},
	}, []string{"takes the order A", "restored from the backup", "starts, incarnation 2", "takes the order A", "A is done"}},
}

// TestStories holds each story's trace against the one that was read and found good. -update writes them anew.
func TestStories(t *testing.T) {
	for _, s := range stories {
		t.Run(s.name, func(t *testing.T) {
			o := s.o
			o.Trace = true
			r, err := Run(o)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(r.Trace, "\n") + "\n"
			rest := got
			for _, w := range s.want {
				_, after, ok := strings.Cut(rest, w)
				if !ok {
					t.Fatalf("no %q in what follows:\n%s", w, rest)
				}
				rest = after
			}
			file := filepath.Join("testdata", strings.NewReplacer(" ", "-", "'", "").Replace(s.name)+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("another story than %s tells (-update writes it):\n%s", file, got)
			}
		})
	}
}
