package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
	"golang.org/x/text/unicode/norm"
)

// Order is what is sent: first the uploads, then the spec.
type Order struct {
	Spec    crowd.JobSpec // digests in the place of paths; passes Check
	Uploads []Upload      // each content once
}

// Upload is some content that the order refers to.
type Upload struct {
	Digest crowd.Digest
	Size   int64
	Name   string // for people: the path as written, or "list of files"
	// Open opens the content from its start. A Conflict means that the file isn't what was digested any more.
	Open func() (Content, error)
}

// Content is an open upload.
type Content interface {
	io.ReadSeekCloser
	io.ReaderAt
}

// maxUnitFiles is how many files units.files may come to.
const maxUnitFiles = 1_000_000

// local is a file that an order needs.
type local struct {
	at   string // path in the spec of the key that names it
	name string // as written, for people
	file string // to open
	as   string // in /in
	most int64
	kind localKind
	i    int // of an input
}

type localKind int

const (
	isProgram localKind = iota
	isInput
	isUnit
)

// Resolve opens and digests what the order needs and returns it ready to be sent. digest reads to the end and says what it read. All faults of
// files come at once, in an error like ReadJobFile's; ctx's end comes as its own error.
func (f *JobFile) Resolve(ctx context.Context, digest func(io.Reader) (crowd.Digest, int64, error)) (*Order, error) {
	files, faults := f.look()
	if len(faults) > 0 {
		return nil, f.err(faults)
	}
	o := &Order{Spec: f.Spec}
	o.Spec.Inputs = slices.Clone(f.Spec.Inputs)
	had := map[crowd.Digest]bool{}
	upload := func(u Upload) {
		if !had[u.Digest] {
			had[u.Digest] = true
			o.Uploads = append(o.Uploads, u)
		}
	}
	var items bytes.Buffer
	done := map[string]Upload{} // a file that is needed twice is read once
	for _, l := range files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		u, ok := done[l.file]
		if !ok {
			var err error
			if u, err = l.digest(ctx, digest); ctx.Err() != nil {
				return nil, ctx.Err()
			} else if err != nil {
				faults = append(faults, crowd.Fault{Path: l.at, Text: crowd.AsError(err).Message, Hint: crowd.AsError(err).Hint})
				if len(faults) == 20 {
					break
				}
				continue
			}
			done[l.file] = u
		}
		upload(u)
		in := crowd.Input{As: l.as, Digest: u.Digest, Size: u.Size}
		switch l.kind {
		case isUnit:
			line, err := json.Marshal(in)
			if err != nil {
				return nil, err
			}
			items.Write(append(line, '\n'))
		case isProgram:
			o.Spec.Program = u.Digest.String()
		case isInput:
			o.Spec.Inputs[l.i] = in
		}
	}
	if len(faults) > 0 {
		return nil, f.err(faults)
	}
	if f.Spec.Units.Files != "" {
		d, n, err := digest(bytes.NewReader(items.Bytes()))
		if err != nil {
			return nil, err
		}
		o.Spec.Units = crowd.Units{Items: d, N: uint64(bytes.Count(items.Bytes(), []byte{'\n'}))}
		upload(Upload{Digest: d, Size: n, Name: "list of files", Open: func() (Content, error) { return memory{bytes.NewReader(items.Bytes())}, nil }})
	}
	return o, f.err(o.Spec.Check())
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// digest reads a file once.
func (l local) digest(ctx context.Context, digest func(io.Reader) (crowd.Digest, int64, error)) (Upload, error) {
	bad := func(format string, args ...any) (Upload, error) {
		return Upload{}, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, l.name+": "+format, args...)
	}
	file, err := openRegular(l.file)
	if err != nil {
		return bad("can't be read: %w", plainErr(err))
	}
	defer file.Close()
	before, err := file.Stat()
	if err != nil {
		return bad("can't be read: %w", plainErr(err))
	}
	d, n, err := digest(ctxReader{ctx, io.LimitReader(file, l.most+1)})
	if err != nil {
		return bad("can't be read: %w", plainErr(err))
	}
	if n > l.most {
		return bad("is larger than %s", crowd.FormatSize(l.most))
	}
	after, err := os.Stat(l.file)
	if err != nil || n != after.Size() || !same(before, after) {
		_, err := bad("changed while it was read")
		return Upload{}, crowd.AsError(err).WithHint("wait until it is written, then the same again")
	}
	return Upload{Digest: d, Size: n, Name: l.name, Open: func() (Content, error) {
		again, err := openRegular(l.file)
		if err != nil {
			return nil, crowd.Errorf(crowd.Conflict, crowd.CustomerFile, "%s can't be read any more: %w", l.name, plainErr(err))
		}
		if now, err := again.Stat(); err != nil || !same(before, now) {
			again.Close()
			return nil, crowd.Errorf(crowd.Conflict, crowd.CustomerFile, "%s changed since it was read", l.name).WithHint("the same command again")
		}
		return again, nil
	}}, nil
}

func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.ModTime() != time.Time{}
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// look finds the files that the order names, in the order program, inputs, unit files (sorted by name), and says what is wrong with them without
// reading more than a program's first bytes.
func (f *JobFile) look() (files []local, faults []crowd.Fault) {
	add := func(l local, hint string) {
		if why, better := lookAt(l); why != "" {
			if better != "" {
				hint = better
			}
			faults = append(faults, crowd.Fault{Path: l.at, Text: why, Hint: hint})
			return
		}
		files = append(files, l)
	}
	s := &f.Spec
	if s.Program != "" && !strings.HasPrefix(s.Program, "b3:") && f.ours(s.Program) {
		add(local{at: "program", name: s.Program, file: f.path(s.Program), most: crowd.Limits.ProgramBytes}, "paths start at the file's folder")
	}
	for i, in := range s.Inputs {
		if in.From != "" && !strings.HasPrefix(in.From, "b3:") && f.ours(in.From) {
			add(local{at: fmt.Sprintf("inputs[%d]", i), name: in.From, file: f.path(in.From), as: in.As, most: crowd.Limits.BlobBytes, kind: isInput, i: i}, "paths start at the file's folder")
		}
	}
	if s.Units.Files != "" && f.ours(s.Units.Files) {
		units, bad := f.unitFiles()
		files, faults = append(files, units...), append(faults, bad...)
	}
	return files, faults
}

// ours reports whether p is a path at all: what names a bucket, or holds a zero byte, is refused elsewhere.
func (f *JobFile) ours(p string) bool {
	bucket, _, found := strings.Cut(p, ":")
	return !strings.ContainsRune(p, 0) && (!found || len(bucket) < 2 || strings.ContainsAny(bucket, `/\.`))
}

func (f *JobFile) path(p string) string {
	if p = filepath.FromSlash(p); filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(f.dir, p)
}

// lookAt says why a file can't be taken, "" if it can.
func lookAt(l local) (why, hint string) {
	info, err := os.Stat(l.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no file " + l.name, ""
	case err != nil:
		return l.name + ": " + plainErr(err).Error(), ""
	case info.IsDir():
		return l.name + " is a folder, wanted a file", `a unit per file of it: units: {files: "` + l.name + `"}`
	case !info.Mode().IsRegular():
		return l.name + " is no ordinary file", ""
	case info.Size() > l.most:
		return fmt.Sprintf("%s has %s, at most %s are taken", l.name, crowd.FormatSize(info.Size()), crowd.FormatSize(l.most)), ""
	case l.kind != isProgram:
		return "", ""
	}
	file, err := openRegular(l.file)
	if err != nil {
		return l.name + ": " + plainErr(err).Error(), ""
	}
	defer file.Close()
	head := make([]byte, 4)
	if _, err := io.ReadFull(file, head); err != nil || string(head) != "\x00asm" {
		return l.name + " is no wasm module", "GOOS=wasip1 GOARCH=wasm go build -o " + filepath.Base(l.name) + " ."
	}
	return "", ""
}

// unitFiles expands units.files: all files below a folder, or those that match a pattern; without names that begin with a dot unless the pattern
// says so. Each is called what it is called below the folder, or below the pattern's first part without a *, ? or [.
func (f *JobFile) unitFiles() (files []local, faults []crowd.Fault) {
	const at = "units.files"
	pattern := filepath.ToSlash(f.Spec.Units.Files)
	bad := func(hint, format string, args ...any) {
		faults = append(faults, crowd.Fault{Path: at, Text: fmt.Sprintf(format, args...), Hint: hint})
	}
	root, names, err := f.expand(pattern)
	switch {
	case err != nil:
		bad("", "%s: %v", pattern, plainErr(err))
		return nil, faults
	case len(names) > maxUnitFiles:
		bad("several jobs", "%s are more than %d files", pattern, maxUnitFiles)
		return nil, faults
	case len(names) == 0:
		bad("paths start at the file's folder", "%s names no file", pattern)
		return nil, faults
	}
	var clean []string
	for _, in := range f.Spec.Inputs {
		clean = append(clean, in.As)
	}
	for _, name := range names {
		l := local{at: at, name: name, file: filepath.Join(root, filepath.FromSlash(name)), as: norm.NFC.String(filepath.ToSlash(name)), most: crowd.Limits.BlobBytes, kind: isUnit}
		why, _ := lookAt(l)
		if _, err := crowd.CleanName(l.as); err != nil {
			why = crowd.AsError(err).Message
		}
		if why != "" {
			if bad("give it another name", "%s", why); len(faults) == 20 {
				return nil, faults
			}
			continue
		}
		files, clean = append(files, l), append(clean, l.as)
	}
	slices.SortFunc(files, func(a, b local) int { return strings.Compare(a.as, b.as) })
	if i, err := crowd.CaseClash(clean); err != nil && i >= len(f.Spec.Inputs) {
		bad("give one of them another name", "%s", crowd.AsError(err).Message)
	}
	return files, faults
}

// expand lists the files of a pattern, as slash paths below root.
func (f *JobFile) expand(pattern string) (root string, names []string, err error) {
	meta := strings.IndexAny(pattern, "*?[")
	if meta < 0 {
		root = f.path(pattern)
		info, err := os.Stat(root)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return root, nil, nil
		case err != nil:
			return root, nil, err
		case !info.IsDir():
			return filepath.Dir(root), []string{filepath.Base(root)}, nil
		}
		names, err = below(root)
		return root, names, err
	}
	if strings.Contains(pattern, "**") {
		return "", nil, errors.New("** isn't known; a folder's name means all files below it")
	}
	slash := strings.LastIndexByte(pattern[:meta], '/') + 1
	root = f.path(pattern[:slash])
	rest := pattern[slash:]
	found, err := fs.Glob(os.DirFS(root), rest)
	for _, name := range found {
		info, err := os.Stat(filepath.Join(root, filepath.FromSlash(name)))
		if err == nil && info.IsDir() || hidden(name, rest) {
			continue
		}
		names = append(names, name)
	}
	return root, names, err
}

// hidden reports whether an element of name begins with a dot that its pattern doesn't ask for.
func hidden(name, pattern string) bool {
	asked := strings.Split(pattern, "/")
	for i, part := range strings.Split(name, "/") {
		if strings.HasPrefix(part, ".") && (i >= len(asked) || !strings.HasPrefix(asked[i], ".")) {
			return true
		}
	}
	return false
}

// below lists the ordinary files, and links to such, below a folder; it stops when there are too many.
func below(root string) (names []string, err error) {
	err = fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name != "." && strings.HasPrefix(d.Name(), ".") && d.IsDir():
			return fs.SkipDir
		case d.IsDir() || strings.HasPrefix(d.Name(), "."):
			return nil
		}
		if info, err := os.Stat(filepath.Join(root, filepath.FromSlash(name))); err == nil && info.Mode().IsRegular() {
			names = append(names, name)
		}
		if len(names) > maxUnitFiles {
			return fs.SkipAll
		}
		return nil
	})
	return names, err
}
