# make demo   installs what is missing and shows the main job on embedded defaults
# make demo-survive  broker and hosts are killed, fall silent, and go back to a backup: nothing is lost
# make test   installs what is missing and passes the tests
# make check  format, vet, lint, builds for every platform, tests: what CI runs
# make bench  the figures, as ratios, into bench/latest.md and bench/latest.json
# make soak   long and heavy suites (CI doesn't run them)
export CGO_ENABLED = 0
LINT = go tool -modfile=tools/go.mod golangci-lint
PLATFORMS = linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
TESTFLAGS ?= -timeout 15m

.PHONY: build setup demo demo-survive test check fmt vet lint cross bench soak fuzz clean

build:
	go build -trimpath -o bin/crowd ./cmd/crowd

setup:
	@./scripts/setup.sh

demo: setup build
	@go run ./examples/demo --crowd bin/crowd --out out/demo

demo-survive: setup build
	@go run ./examples/survive --crowd bin/crowd --out out/demo

test: setup
	go test $(TESTFLAGS) ./...

check: fmt vet lint cross test

fmt:
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "not gofmt'd:"; echo "$$bad"; exit 1; fi

vet:
	go vet ./...

lint:
	$(LINT) run ./...

cross:
	@for p in $(PLATFORMS); do echo "build $$p"; GOOS=$${p%/*} GOARCH=$${p#*/} go build -o /dev/null ./cmd/crowd || exit 1; done

bench: build
	@./scripts/setup.sh bench
	go run ./bench

soak: setup build
	@./scripts/setup.sh soak
	CROWD_SOAK=20 go test -count=1 -timeout 3h ./...  # 20: millions of decided chunks, where that is the measure
	$(MAKE) fuzz FUZZTIME=60s

FUZZTIME ?= 10s
fuzz:
	@./scripts/fuzz.sh $(FUZZTIME)

clean:
	rm -rf bin out
