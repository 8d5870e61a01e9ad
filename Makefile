# Everything that is done with this tree more than once. 'make' alone lists it.
.DEFAULT_GOAL := help
.PHONY: help build demo test check unit race rigs conform vm sim mutate fuzz bench clean

GO       ?= go
BIN      := bin
export CGO_ENABLED ?= 0

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/gabion
	$(GO) build -trimpath -o $(BIN)/gabion ./cmd/gabion

demo: build ## three nodes on this machine with a 10 GiB volume, under ./demo; Ctrl-C ends it
	@$(GO) build -o $(BIN)/demo ./deploy/demo
	@exec $(BIN)/demo $(BIN)/gabion demo

test: build check ## everything: unit tests, races, simulation, rigs with real clients, conformance, test machine
	@test/needs.sh
	@GABION_BIN=$(CURDIR)/$(BIN)/gabion test/run.sh race mutate rigs conform vm+sim

check: ## formatting, go vet, staticcheck
	@test/check.sh

unit: ## the unit tests alone, a few seconds
	@test/run.sh unit

race: ## the unit tests with the race detector
	@test/run.sh race

rigs: build ## whole pools of real processes: kill, freeze, fill, idle, bad input
	@test/needs.sh
	@GABION_BIN=$(CURDIR)/$(BIN)/gabion test/run.sh rigs

conform: build ## NBD clients of others against a pool: libnbd, QEMU, fio
	@test/needs.sh
	@GABION_BIN=$(CURDIR)/$(BIN)/gabion test/run.sh conform

vm: build ## a stock kernel as client and power cuts, in QEMU (VM_CUTS=3)
	@test/needs.sh
	@GABION_BIN=$(CURDIR)/$(BIN)/gabion test/run.sh vm

sim: ## whole pools under faults, simulated (SEED=, NODES=, SECONDS=60)
	@SEED=$(SEED) NODES=$(NODES) SIM_SECONDS=$(or $(SECONDS),60) test/sim.sh

mutate: ## every mutation must be found by a test
	@test/mutate.sh

fuzz: ## every fuzz target (FUZZTIME=10s)
	@test/fuzz.sh

bench: build ## beside nbdkit on the same disk (bench/run.sh has the options)
	@test/needs.sh
	@bench/run.sh

clean: ## what was built; volumes of the demo stay
	rm -rf $(BIN)
