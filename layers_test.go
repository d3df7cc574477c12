package crowd

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/crowdcloud/crowd"

type pkg struct {
	ImportPath string
	Imports    []string
}

// TestLayers holds the import graph against the two blocks of ARCHITECTURE.md.
func TestLayers(t *testing.T) {
	groupOf, mayImport := layerBlock(t)
	doors := doorBlock(t)
	seen := map[string]bool{}
	for _, p := range goList(t) {
		name := short(p.ImportPath)
		if strings.HasPrefix(name, "examples") || strings.HasPrefix(name, "testdata") {
			name = "examples"
		} else if groupOf[name] == "" {
			t.Errorf("package %s stands in no layer of ARCHITECTURE.md", name)
			continue
		}
		seen[name] = true
		for _, imp := range p.Imports {
			switch {
			case imp == module || strings.HasPrefix(imp, module+"/"):
				to := short(imp)
				from := groupOf[name]
				if name != "examples" && !slices.Contains(mayImport[from], "everything") && !slices.Contains(mayImport[from], groupOf[to]) {
					t.Errorf("%s (%s) imports %s (%s): not allowed by ARCHITECTURE.md", name, from, to, groupOf[to])
				}
			case strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") && !strings.HasPrefix(imp, "golang.org/x/"):
				if !allowed(doors, imp, name) {
					t.Errorf("%s imports %s: each outside module has one door, see ARCHITECTURE.md", name, imp)
				}
			}
		}
	}
	for name := range groupOf {
		if !seen[name] {
			t.Errorf("ARCHITECTURE.md names %s, which doesn't exist", name)
		}
	}
}

func allowed(doors map[string][]string, imp, name string) bool {
	for mod, pkgs := range doors {
		if imp == mod || strings.HasPrefix(imp, mod+"/") {
			return slices.Contains(pkgs, name)
		}
	}
	return false
}

func short(path string) string {
	if path == module {
		return "."
	}
	return strings.TrimPrefix(strings.TrimPrefix(path, module+"/"), "internal/")
}

func goList(t *testing.T) []pkg {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func block(t *testing.T, name string) []string {
	b, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "```"+name+"\n")
	body, _, ok2 := strings.Cut(rest, "\n```")
	if !ok || !ok2 {
		t.Fatalf("ARCHITECTURE.md has no block %q", name)
	}
	return strings.Split(body, "\n")
}

func layerBlock(t *testing.T) (groupOf map[string]string, mayImport map[string][]string) {
	groupOf, mayImport = map[string]string{}, map[string][]string{}
	for _, line := range block(t, "layers") {
		left, right, ok := strings.Cut(line, ":")
		f := strings.Fields(left)
		if !ok || len(f) < 2 {
			t.Fatalf("bad line in the layer block: %q", line)
		}
		for _, p := range f[1:] {
			groupOf[p] = f[0]
		}
		mayImport[f[0]] = strings.Fields(right)
	}
	return groupOf, mayImport
}

func doorBlock(t *testing.T) map[string][]string {
	doors := map[string][]string{}
	for _, line := range block(t, "doors") {
		f := strings.Fields(line)
		doors[f[0]] = f[1:]
	}
	return doors
}
