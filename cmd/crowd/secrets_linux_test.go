package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest/wasm"
	"github.com/crowdcloud/crowd/internal/host"
	"github.com/crowdcloud/crowd/internal/seal"
)

// A secret is looked for in the forms in which it might stand somewhere.
type secret struct {
	name  string
	forms [][]byte
}

func textSecret(name, s string) secret {
	s = strings.TrimPrefix(s, seal.SecretPrefix)
	return secret{name, [][]byte{[]byte(s), []byte(hex.EncodeToString([]byte(s))), []byte(base64.StdEncoding.EncodeToString([]byte(s))[:len(s)])}}
}

func keySecret(t *testing.T, name, path string) secret {
	k, err := seal.LoadKey(path)
	must(t, err)
	pem, err := os.ReadFile(path)
	must(t, err)
	seed := k.Seed()
	return secret{name, [][]byte{seed, []byte(hex.EncodeToString(seed)), []byte(base64.StdEncoding.EncodeToString(seed)), bytes.Split(pem, []byte("\n"))[1]}}
}

// found names the secrets that stand in b.
func found(b []byte, all []secret) (names []string) {
	for _, s := range all {
		for _, f := range s.forms {
			if bytes.Contains(b, f) {
				names = append(names, s.name)
				break
			}
		}
	}
	return names
}

// eachPiece reads the memory of a process: every region that can be read, in pieces that overlap.
func eachPiece(pid int, see func([]byte)) (read int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return 0, err
	}
	defer mem.Close()
	const piece, overlap = 1 << 20, 256
	buf := make([]byte, piece+overlap)
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' || strings.Contains(line, "[v") {
			continue
		}
		for at := from; at < to; at += piece {
			n, _ := mem.ReadAt(buf[:min(uint64(len(buf)), to-at)], int64(at))
			see(buf[:n])
			read += int64(n)
		}
	}
	return read, nil
}

func inMemory(t *testing.T, pid int, all []secret) []string {
	t.Helper()
	seen := map[string]bool{}
	read, err := eachPiece(pid, func(b []byte) {
		for _, n := range found(b, all) {
			seen[n] = true
		}
	})
	if gone := errors.Is(err, fs.ErrNotExist); gone || err != nil || read < 100<<10 {
		if gone {
			return []string{"gone"}
		}
		t.Fatalf("only %d bytes of process %d could be read: %v", read, pid, err)
	}
	var names []string
	for n := range seen {
		names = append(names, n)
	}
	return names
}

// descendants are the guests below pid. A child that isn't yet the program it becomes still shares its parent's memory: it is none.
func descendants(pid int) (all []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, s := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(s)
			if err != nil {
				continue
			}
			if cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", n)); bytes.Contains(cmd, []byte(wasm.ChildWord)) {
				all = append(all, n)
			}
			all = append(all, descendants(n)...)
		}
	}
	return all
}

// secretTown is a broker and a host in processes of their own, both saying all that they can.
type secretTown struct {
	t            *testing.T
	dir, url     string
	pin          string
	broker, host *exec.Cmd
	logs         map[string]*syncBuffer
	keys         map[string]string
	token        string
}

func (w *secretTown) start(name string, args ...string) (*exec.Cmd, io.Reader) {
	w.t.Helper()
	c := exec.Command("crowd", args...)
	c.Env = append(os.Environ(), "TMPDIR="+w.dir)
	w.logs[name] = &syncBuffer{}
	c.Stderr = w.logs[name]
	out, err := c.StdoutPipe()
	must(w.t, err)
	must(w.t, c.Start())
	w.t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c, out
}

func (w *secretTown) client(key string) *client.Client {
	c, err := client.New(client.Options{Broker: w.url, Key: key, TLS: seal.PinnedTLS(w.pin)})
	must(w.t, err)
	return c
}

// cli runs a command as somebody and keeps all that it says.
func (w *secretTown) cli(key string, args ...string) {
	c := exec.Command("crowd", append([]string{"-v"}, args...)...)
	c.Env = append(os.Environ(), "CROWD_BROKER="+w.url, "CROWD_PIN="+w.pin, "CROWD_KEY="+key, "XDG_CONFIG_HOME="+filepath.Join(w.dir, "config"), "XDG_CACHE_HOME="+filepath.Join(w.dir, "cache"))
	out, _ := c.CombinedOutput() // many are meant to fail
	_, _ = w.logs["cli"].Write(append([]byte("$ "+args[0]+"\n"), out...))
}

// get asks by plain HTTP and keeps what is said.
func (w *secretTown) get(method, path, authorization, body string) []byte {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, strings.NewReader(body))
	must(w.t, err)
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	r.Header.Set("Content-Type", "application/json")
	tr := &http.Transport{TLSClientConfig: seal.PinnedTLS(w.pin)}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Do(r)
	must(w.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(w.t, err)
	_, _ = w.logs["answers"].Write(b)
	return b
}

func newSecretTown(t *testing.T) *secretTown {
	ctx := t.Context()
	w := &secretTown{t: t, dir: shortTemp(t), logs: map[string]*syncBuffer{"cli": {}, "answers": {}}, keys: map[string]string{}}
	var out io.Reader
	w.broker, out = w.start("broker", "broker", "run", "-v", "--json", "--listen", "127.0.0.1:0", "--data", filepath.Join(w.dir, "b"))
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	must(t, err)
	var ready struct {
		URL string `json:"url"`
		Pin string `json:"pin"`
		Key string `json:"owner_key"`
	}
	must(t, json.Unmarshal(line, &ready))
	w.url, w.pin, w.keys["operator"] = ready.URL, ready.Pin, ready.Key
	op := w.client(ready.Key)
	for _, name := range []string{"ada", "eve", "hal"} {
		a, err := op.CreateAccount(ctx, name)
		must(t, err)
		w.keys[name] = a.Secret
		_, err = op.Grant(ctx, name, client.Grant{Amount: 100 * crowd.Credit, ID: name})
		must(t, err)
	}
	token, err := w.client(w.keys["hal"]).CreateToken(ctx, time.Hour)
	must(t, err)
	l, err := seal.ParseJoinLink(token.Link)
	must(t, err)
	w.token = l.Token
	_, err = host.Join(ctx, token.Link, host.JoinOptions{Dir: filepath.Join(w.dir, "hal"), Name: "halhost", Place: "DE", Platform: host.ThisPlatform("test", ""),
		Capacity: crowd.Capacity{Slots: 1, MemoryBytes: 1 << 30, DiskBytes: 1 << 30, Speed: 1}})
	must(t, err)
	w.host, _ = w.start("host", "host", "run", "-v", "--state-dir", filepath.Join(w.dir, "hal"))
	return w
}

// spin orders a job that takes its time, and waits until it runs.
func (w *secretTown) spin(who, canary string) string {
	w.t.Helper()
	ctx := w.t.Context()
	b, err := os.ReadFile("testdata/spin.wasm")
	must(w.t, err)
	c, d := w.client(w.keys[who]), digest.Of(b)
	must(w.t, c.Upload(ctx, d, int64(len(b)), bytes.NewReader(b), nil))
	j, err := c.Submit(ctx, &crowd.JobSpec{Kind: "job", Name: who, Program: d.String(), Args: []string{"1", "900000000000", canary + "-arg"}, Env: map[string]string{"CANARY": canary + "-env"},
		Units: crowd.Units{Count: 1}, Verify: crowd.Verify{None: true}, Price: crowd.PriceRule{Max: 50 * crowd.Credit}, Resources: crowd.Resources{Memory: 16 << 20}}, "")
	must(w.t, err)
	return j.ID.String()
}

// children waits for guests of the host in whose memory the canary is, and returns all children.
func (w *secretTown) children(canary string) []int {
	w.t.Helper()
	for range 300 {
		all := descendants(w.host.Process.Pid)
		for _, p := range all {
			at := false
			if _, err := eachPiece(p, func(b []byte) { at = at || bytes.Contains(b, []byte(canary+"-env")) }); err == nil && at {
				return all
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.t.Fatalf("no guest has %s\n%s", canary, w.logs["host"])
	return nil
}

var bearerForm = regexp.MustCompile(`"bearer":"([0-9a-z]{52})"`)

// Secrets stand where they must and nowhere else: not in what broker, host and command say at debug level while much goes wrong, not in events, metrics or
// errors, in the store as hashes only, and in no guest's memory, environment or descriptors. The same search finds them where they are.
func TestSecretsStayHome(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("reading the memory of guests wants root")
	}
	w := newSecretTown(t)
	var secrets []secret
	for name, k := range w.keys {
		secrets = append(secrets, textSecret(name+"'s API key", k))
	}
	secrets = append(secrets, textSecret("the join token", w.token), keySecret(t, "the broker's key", filepath.Join(w.dir, "b", "broker.key")), keySecret(t, "the host's key", filepath.Join(w.dir, "hal", "host.key")))
	adas, eves := seal.NewToken(), seal.NewToken() // not as text: that stands in this very binary, which guests run
	job := w.spin("ada", adas)
	children := w.children(adas)

	var bearer string
	for range 50 {
		_, err := eachPiece(w.host.Process.Pid, func(b []byte) {
			if m := bearerForm.FindSubmatch(b); m != nil {
				bearer = string(m[1])
			}
		})
		must(t, err)
		if bearer != "" {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if bearer == "" {
		t.Fatal("the host's bearer wasn't found in its own memory")
	}
	secrets = append(secrets, textSecret("the host's bearer", bearer))

	t.Run("guests", func(t *testing.T) {
		looked := 0
		defer func() {
			if looked == 0 {
				t.Error("no guest was looked at")
			}
		}()
		for _, p := range append(children, descendants(w.broker.Process.Pid)...) {
			names := inMemory(t, p, secrets)
			if fmt.Sprint(names) == "[gone]" {
				continue // one that checked a program
			}
			if names != nil {
				t.Errorf("in a guest's memory: %v", names)
			}
			looked++
			env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p))
			if err != nil || len(bytes.Trim(env, "\x00")) > 0 {
				t.Errorf("a guest's environment: %q, %v", env, err)
			}
			fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p))
			must(t, err)
			for _, fd := range fds {
				to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", p, fd.Name()))
				if !strings.HasPrefix(to, "pipe:") && !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "/sys/fs/cgroup/cpu") { // Go's runtime reads how many processors it has
					t.Errorf("a guest has %s open", to)
				}
			}
		}
	})
	t.Run("control", func(t *testing.T) { // the search finds what is there
		if names := inMemory(t, w.host.Process.Pid, secrets); !strings.Contains(fmt.Sprint(names), "the host's key") || !strings.Contains(fmt.Sprint(names), "bearer") {
			t.Errorf("in the agent's own memory only %v were found", names)
		}
		if names := inMemory(t, w.broker.Process.Pid, secrets); !strings.Contains(fmt.Sprint(names), "the broker's key") || !strings.Contains(fmt.Sprint(names), "bearer") {
			t.Errorf("in the broker's own memory only %v were found", names)
		}
		naked := exec.Command("sleep", "100") // a child without a cage: environment and a descriptor of its parent's
		naked.Env = []string{"CROWD_KEY=" + w.keys["ada"]}
		must(t, naked.Start())
		defer func() {
			_ = naked.Process.Kill()
			_ = naked.Wait()
		}()
		var names []string
		for range 100 { // until it is itself
			if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", naked.Process.Pid)); bytes.Contains(b, []byte("CROWD_KEY")) {
				names = inMemory(t, naked.Process.Pid, secrets)
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if fmt.Sprint(names) != "[ada's API key]" {
			t.Errorf("in a child with the key in its environment %v were found", names)
		}
	})
	t.Run("the next customer", func(t *testing.T) {
		_, err := w.client(w.keys["ada"]).CancelJob(context.Background(), job)
		must(t, err)
		w.spin("eve", eves)
		for _, p := range w.children(eves) {
			hers, his := false, false
			_, err := eachPiece(p, func(b []byte) {
				hers, his = hers || bytes.Contains(b, []byte(adas)), his || bytes.Contains(b, []byte(eves))
			})
			if err == nil && hers && his {
				t.Error("a guest of eve's has ada's spec in its memory")
			}
		}
	})

	// much goes wrong
	ada, op := w.keys["ada"], w.keys["operator"]
	for _, args := range [][]string{
		{"job", "show", ada}, {"job", "show", "nosuch"}, {"why", ada}, {"account", "show"}, {"account", "keys", "ls"}, {"account", "keys", "delete", ada},
		{"job", "ls", "--bad"}, {"run", "/nonexistent"}, {"join", w.url + "/j/" + w.token + "#" + w.pin}, {"join", w.token}, {"hosts"},
	} {
		w.cli(ada, args...)
	}
	w.cli(ada[:len(ada)-1]+"0", "account", "show")
	for _, auth := range []string{"Bearer " + ada, "Bearer " + bearer, "Basic " + ada, "Bearer ck_" + bearer, ada} {
		for _, path := range []string{"/v1/jobs", "/v1/jobs/" + ada, "/v1/link/blobs/" + ada, "/v1/events?of=" + ada, "/v1/why/" + ada, "/j/" + w.token, "//j/" + w.token, "/v1/hosts?key=" + ada, "/problems/" + ada, "/nosuch/" + ada} {
			w.get("GET", path, auth, "")
		}
		w.get("POST", "/v1/jobs", auth, `{"name":"`+ada+`","program":"x"`)
		w.get("POST", "/v1/hosts/join", auth, `{"token":"`+w.token+`"}`)
		w.get("POST", "/v1/hosts/join", auth, `{"token":"`+w.token+`","name":1}`)
		w.get("POST", "/v1/keys", auth, `{"scopes":["`+ada[:20]+`"]}`)
	}
	if metrics := w.get("GET", "/metrics", "Bearer "+op, ""); !bytes.Contains(metrics, []byte("crowd_hosts_online")) {
		t.Errorf("metrics: %.100s", metrics)
	}
	if events := w.get("GET", "/v1/events?limit=1000", "Bearer "+op, ""); bytes.Count(events, []byte(`"event"`)) < 10 {
		t.Errorf("events: %.300s", events)
	}
	hostLog, err := os.ReadFile(filepath.Join(w.dir, "hal", "host.log"))
	must(t, err)
	for name, log := range map[string]string{"broker": w.logs["broker"].String(), "host": w.logs["host"].String(), "host.log": string(hostLog), "command": w.logs["cli"].String(), "answers": w.logs["answers"].String()} {
		if len(log) < 50 && name != "host" {
			t.Errorf("%s said only %q", name, log)
		}
		if names := found([]byte(log), secrets); names != nil {
			t.Errorf("%s tells %v", name, names)
			for line := range strings.Lines(log) {
				if n := found([]byte(line), secrets); n != nil {
					t.Logf("%v: %.300s", n, line)
				}
			}
		}
		if strings.Contains(log, adas) && name != "answers" {
			t.Errorf("%s tells a spec's environment", name)
		}
		if names := found([]byte(log+"x"+w.keys["hal"]), secrets); len(names) != 1 {
			t.Errorf("a key that was put into it isn't found in what %s said", name)
		}
	}

	// on disk
	hash := sha256.Sum256([]byte(ada))
	hashed := false
	must(t, filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "broker.key" || d.Name() == "host.key" {
			return nil //nolint:nilerr // it has gone
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // it has gone
		}
		hashed = hashed || bytes.Contains(b, hash[:])
		if names := found(b, secrets); names != nil {
			t.Errorf("%s holds %v", strings.TrimPrefix(path, w.dir), names)
		}
		return nil
	}))
	if !hashed {
		t.Error("not even the hash of a key was found in the store: the search looked elsewhere")
	}
}
