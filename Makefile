# `make` prints what there is. Everything here works from a fresh clone and may be
# given again at any time.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
SERVERS := deploy/local/servers

# The race detector needs a C compiler; RACE= leaves it out.
RACE ?= $(if $(shell command -v gcc || command -v cc),-race)
# Packages whose tests measure, push volume, or watch processes that are built without it: there it
# would only make them slow.
NO_RACE := lockstep/bench lockstep/deploy/% lockstep/internal/e2e

.DEFAULT_GOAL := help
.PHONY: help up down status clean build test vuln sbom demo demo-route bench bench-peers generate fuzz

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: ## install and start the local servers
	@$(SERVERS) up

down: ## stop the local servers; their data stays
	@$(SERVERS) down

status: ## show the local servers; fails unless all are up
	@$(SERVERS) status

clean: ## stop the local servers and delete their data
	@$(SERVERS) clean

build: ## build bin/lockstep, static
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/lockstep ./cmd/lockstep

.PHONY: bin/demo
bin/demo: build
	@go build -o $@ ./deploy/demo

# On two cores in about 20 minutes. Packages whose tests ask for no server run while the servers
# start; testenv is how a test finds one, so nobody is forgotten. Those of one system run beside one
# another, the others one at a time, because a test may stop a server or set it otherwise. Within a
# package what waits for servers of its own, or has names of its own on a shared one, runs side by side.
TEST := go test -count=1 -timeout 60m -parallel 4
IMPORTS := {{.ImportPath}}{{range .Imports}} {{.}}{{end}}{{range .TestImports}} {{.}}{{end}}{{range .XTestImports}} {{.}}{{end}}
NAMES = $(or $(shell go list -f '$(IMPORTS)' ./... | grep $(1) 'internal/testenv\>' | cut -d' ' -f1),$(error go list names no packages))
TESTENV = $(call NAMES,)
ALONE = $(call NAMES,-v)
ONE_SYSTEM := lockstep/cdc/mysql lockstep/kafka lockstep/sinks/elastic lockstep/sinks/redis
REDISES := test-redis8 test-valkey

test: ## start what is needed and run all tests, those against real servers included
	@$(MAKE) --no-print-directory -j2 test-servers test-alone
	$(TEST) -p 2 $(RACE) $(ONE_SYSTEM)
	$(TEST) -p 1 $(RACE) $(filter-out $(NO_RACE) $(ONE_SYSTEM),$(TESTENV))
	$(TEST) -p 1 $(filter $(NO_RACE),$(TESTENV))
	@$(MAKE) --no-print-directory -j2 $(REDISES)

.PHONY: test-servers test-alone $(REDISES)
test-servers:
	@$(SERVERS) up mysql kafka elasticsearch redis redis8 valkey mariadb

test-alone:
	@unformatted=$$(gofmt -l $$(go list -f '{{.Dir}}' ./...)); \
	  if [[ -n $$unformatted ]]; then echo "gofmt is needed in:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	@deploy/local/kubernetes/tools helm kubeconform schemas etcd kube-apiserver >/dev/null
	$(TEST) $(RACE) $(ALONE)

$(REDISES): test-%:
	LOCKSTEP_REDIS=$* $(TEST) -run 'SuiteOfSinks|OnePlace|Rights|Flush|Cache' ./sinks/redis

# It looks at the code as the toolchain of go.mod compiles it, which is that of the Dockerfile.
# The database is a Go module like any other; VULNDB=latest takes the newest.
vuln: export GOTOOLCHAIN := $(shell awk '$$1 == "toolchain" { print $$2 }' go.mod)
VULNDB ?= v0.0.0-20261105234957-e22db6528018

vuln: ## look for known vulnerabilities in what the binary calls; fails when there is one
	@grep -q "^FROM golang:$${GOTOOLCHAIN#go} " Dockerfile || { echo "Dockerfile builds with another Go than $$GOTOOLCHAIN of go.mod"; exit 1; }
	@osv=$$(go mod download -json golang.org/x/vulndb@$(VULNDB) | sed -n 's/^\t"Dir": "\(.*\)",$$/\1/p')/data/osv; \
	  go run golang.org/x/vulndb/cmd/indexdb@$(VULNDB) -vulns "$$osv" -out .local/vulndb
	go run golang.org/x/vuln/cmd/govulncheck@v1.1.4 -db "file://$(CURDIR)/.local/vulndb" ./cmd/lockstep

sbom: build ## list what the binary is made of in bin/lockstep.cdx.json (CycloneDX)
	go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.9.0 bin -json -output bin/lockstep.cdx.json bin/lockstep

# Every one in turn, because go test fuzzes one at a time. What is found is written to
# testdata/fuzz beside the test, and from then on a part of make test.
FUZZTIME ?= 30s
fuzz: ## give every decoder bytes that nobody thought of, each for FUZZTIME=30s
	@$(SERVERS) up mysql
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n 1 dirname | sort -u | while read -r dir; do \
	  for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$dir/*_test.go); do \
	    echo "$$dir $$name"; go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) $$dir </dev/null; done; done

demo: ## see it work: MySQL rows into Elasticsearch and Redis, under load, compared at the end
	@$(MAKE) --no-print-directory -j2 up bin/demo
	@bin/demo

demo-route: ## see reads sent to MySQL when Elasticsearch breaks under load, and come back
	@$(MAKE) --no-print-directory -j2 up bin/demo
	@bin/demo -route -rate 50

bench: ## measure it beside bare loops, as ratios
	@$(SERVERS) up
	@$(MAKE) --no-print-directory build
	@go run ./bench

# ROWS= and DURATION= make it smaller for a try.
bench-peers: ## measure the capture beside Debezium, which it downloads
	@$(SERVERS) up mysql kafka redis
	@$(MAKE) --no-print-directory build
	@go run ./bench -peers -out .local/bench-peers.json $(if $(ROWS),-rows $(ROWS)) $(if $(DURATION),-duration $(DURATION))

generate: ## rewrite everything that is generated
	go generate ./...
