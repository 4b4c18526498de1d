# `make` prints what there is. Everything here works from a fresh clone and may be
# given again at any time.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
SERVERS := deploy/local/servers

# The race detector needs a C compiler; RACE= leaves it out.
RACE ?= $(if $(shell command -v gcc || command -v cc),-race)
# Packages whose tests measure or push volume, where it would only make them slow.
NO_RACE := /bench|/deploy/

.DEFAULT_GOAL := help
.PHONY: help up down status clean build test demo demo-route bench bench-peers generate

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

# One package at a time: some tests stop a server that the others use.
test: ## start what is needed and run all tests, those against real servers included
	@$(SERVERS) up mysql kafka elasticsearch redis redis8 valkey mariadb
	@deploy/local/kubernetes/tools helm kubeconform schemas etcd kube-apiserver >/dev/null
	@unformatted=$$(gofmt -l $$(go list -f '{{.Dir}}' ./...)); \
	  if [[ -n $$unformatted ]]; then echo "gofmt is needed in:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go test -count=1 -p 1 -timeout 30m $(RACE) $$(go list ./... | grep -vE '$(NO_RACE)')
	go test -count=1 -p 1 -timeout 30m $$(go list ./... | grep -E '$(NO_RACE)')
	for server in redis8 valkey; do \
	  LOCKSTEP_REDIS=$$server go test -count=1 -run 'SuiteOfSinks|OnePlace|Rights|Flush|Cache' ./sinks/redis; done

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
