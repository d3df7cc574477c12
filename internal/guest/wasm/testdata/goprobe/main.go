// Goprobe is what the tests run that Go has its own ways with.
package main

import (
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		return
	}
	begun := time.Now()
	fmt.Println(begun.UTC().Year(), os.Args[1:], os.Getenv("HOME"))
	wd, err := os.Getwd()
	fmt.Println(wd, err)
	var id [8]byte
	rand.Read(id[:])
	fmt.Printf("%x\n", id)
	var wg sync.WaitGroup
	sum := make(chan int, 10)
	for i := range 10 {
		wg.Go(func() {
			time.Sleep(time.Duration(10-i) * time.Minute)
			sum <- i
		})
	}
	wg.Wait()
	close(sum)
	for i := range sum {
		fmt.Print(i, " ")
	}
	fmt.Println(time.Since(begun).Truncate(time.Minute))
	b, err := os.ReadFile("/in/deep/a")
	fmt.Println(len(b), err)
	check(os.MkdirAll("/out/x/y", 0o755))
	check(os.WriteFile("/out/x/y/z", []byte(strings.ToUpper(string(b))), 0o644))
	check(os.WriteFile("out/top", b, 0o644))
	check(os.Rename("/out/top", "/out/x/top"))
	fmt.Println(os.WriteFile("/in/no", nil, 0o644))
	check(fs.WalkDir(os.DirFS("/"), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			info, err := d.Info()
			check(err)
			fmt.Println(path, d.IsDir(), info.Size())
		}
		return err
	}))
	f, err := os.CreateTemp("/state", "")
	check(err)
	check(os.Remove(f.Name()))
	m := map[int]int{}
	for i := range 100000 {
		m[i*7919%100003] = i
	}
	fmt.Println(len(m))
	os.Exit(7)
}

func check(err error) {
	if err != nil {
		fmt.Println("FAILED", err)
	}
}
