# Commands for development. Each calls a script in dev/, and everything they make lies under build/.
#
# SUITE=trixie|forky   the Debian suite whose containerd, runc and Nix are used (test…, soak: both unless given)
# SANDBOX=auto|always|never   auto uses the tools on the PATH when they are there and new enough
# FILTER=NAME          only the tests (test…, soak), or the parts (bench), that have it in their names
# FUZZ_SECONDS=600     how long `make fuzz` tries
# PREFIX=DIRECTORY     where the programs are installed

export PREFIX ?= build/bin

.PHONY: all build nix-snapshotter nix2container start-containerd start-nix-snapshotter load-hello load-redis \
	run-hello run-redis nsenter sandbox test test-systemd test-kubernetes test-nix docs soak fuzz lint fmt bench clean help

all: build

build: ## Build both programs into build/bin, man pages and completions into build/share, the unit into build/lib
	@dev/build nix-snapshotter nix2container

nix-snapshotter nix2container: ## Build one of them
	@dev/build $@

start-containerd: sandbox ## Run containerd in the foreground, for the commands below
	@dev/sandbox join dev/inside/start containerd

start-nix-snapshotter: sandbox build ## Run the snapshotter in the foreground, in another terminal
	@dev/sandbox join dev/inside/start nix-snapshotter

load-hello load-redis: load-%: sandbox build ## Load an image into that containerd
	@dev/image load $*

run-hello run-redis: run-%: sandbox build ## Run a container there, or with daemons of its own when those do not run
	@dev/image run $*

nsenter: ## Run ARGS where those daemons run, or a shell
	@dev/nsenter $(ARGS)

sandbox: ## Make the root file system of SUITE
	@dev/sandbox make

test: ## Run all tests, on both suites
	@dev/test $(SUITE)

test-systemd: ## Run the golden units under systemd, on both suites
	@dev/test-systemd $(SUITE)

test-kubernetes: ## Run kubelet, crictl and nerdctl on the daemon, on both suites
	@dev/test-kubernetes $(SUITE)

test-nix: ## Evaluate the modules, the packages and the whole flake
	@dev/test-nix

docs: ## Make docs/configuration.md and tests/golden anew
	@dev/test-nix --update

soak: ## Repeat for long what may fail once in many times: kills, damages
	@dev/soak $(SUITE)

fuzz: ## Try the parsers with ever new inputs, for FUZZ_SECONDS
	@dev/fuzz

lint: ## Run every check that is no test
	@dev/lint

fmt: ## Format the code
	@dev/fmt

bench: ## Measure beside containerd's own snapshotter
	@dev/bench

clean: ## Remove build/
	@dev/clean

help: ## Print this list
	@sed -n 's/^\([a-z][a-z0-9 -]*\):.*## /\1: /p' Makefile
