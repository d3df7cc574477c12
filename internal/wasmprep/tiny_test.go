package wasmprep

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

func hx(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return b
}

// tiny is a hand-made command of one function; what is left zero is as small as it can be.
type tiny struct {
	head     []byte         // instead of the eight bytes
	sections map[int][]byte // replaces a section's content; nil leaves it out
	extra    []byte         // bytes at the end
	locals   []byte
	body     []byte
}

var order = []int{1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11}

func (m tiny) wasm() []byte {
	locals, body := m.locals, m.body
	if locals == nil {
		locals = []byte{0}
	}
	if body == nil {
		body = []byte{opEnd}
	}
	secs := map[int][]byte{
		secType:     hx("01 60 00 00"),
		secFunction: hx("01 00"),
		secMemory:   hx("01 00 01"),
		secExport:   append(hx("02"), append(putU32(append(putBytes(nil, "memory"), kindMemory), 0), putU32(append(putBytes(nil, "_start"), kindFunc), 0)...)...),
		secCode:     putBytes([]byte{1}, append(append([]byte(nil), locals...), body...)),
	}
	for id, s := range m.sections {
		secs[id] = s
	}
	out := m.head
	if out == nil {
		out = []byte("\x00asm\x01\x00\x00\x00")
	}
	for _, id := range order {
		if s := secs[id]; s != nil {
			out = putBytes(append(out, byte(id)), s)
		}
	}
	return append(out, m.extra...)
}

// peek runs _start, with one refill, and gives the eight bytes at address 0 as a number.
func (e engine) peek(t *testing.T, wasm []byte, refill int64) (string, error) {
	t.Helper()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, e.config)
	defer rt.Close(ctx)
	_, err := rt.NewHostModuleBuilder(PollModule).NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module) {
		fuel := m.ExportedGlobal(FuelGlobal).(api.MutableGlobal)
		if refill >= 0 {
			fuel.Set(uint64(refill))
		}
	}).Export(PollName).Instantiate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mod, err := rt.Instantiate(ctx, wasm)
	if err != nil {
		return "", err
	}
	v, _ := mod.Memory().ReadUint64Le(0)
	return fmt.Sprintf("%016x", v), nil
}
