# Everything that one does with Berth's sources. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# rustup puts cargo here; a shell opened before the toolchain came may not know it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
TARGET_DIR := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
BERTH := $(TARGET_DIR)/debug/berth
# OCI archives of the container images that tests and the demo run. Nothing is pulled.
IMAGES := $(TARGET_DIR)/images
export BERTH_IMAGES := $(abspath $(IMAGES))
export BERTH_BIN := $(abspath $(BERTH))
SUDO := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env)
# Tests make mounts and network namespaces: not the build, but the test programs run as root.
ifneq ($(SUDO),)
export CARGO_TARGET_$(shell uname -m | tr a-z A-Z)_UNKNOWN_LINUX_GNU_RUNNER := $(SUDO)
endif
SEEDS ?= 200
# What shows that volumes can be trusted. All of it is in `make test` too, with fewer operations of the canaries.
VOLUME_TESTS := csi foreign volumes_canary volumes_faults volumes_image
# Every application's image has a recipe of its own.
APPLICATION_IMAGES := $(patsubst deploy/images/%/image.sh,%,$(wildcard deploy/images/*/image.sh))

.PHONY: help
help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 28

.PHONY: setup
setup: ## Installs what building and running need (Debian/Ubuntu); does nothing if all is there
	@deploy/setup.sh

.PHONY: build
build: setup ## Builds the berth binary
	cargo build --locked --package cli

.PHONY: images
images: setup ## Builds the images that the demo and `make test` run from Debian packages
	@deploy/images/build.sh $(IMAGES)
	@deploy/images/build.sh $(IMAGES)/applications etcd

.PHONY: images-applications
images-applications: images ## Builds the images of all applications in examples/ from Debian packages
	@deploy/images/build.sh $(IMAGES)/applications $(APPLICATION_IMAGES)

.PHONY: demo
demo: build images ## Shows the main job from nothing; KEEP=1 leaves the lab running
	@$(SUDO) deploy/demo.sh

.PHONY: test
test: build images ## Passes all tests, the end-to-end tests in the lab included
	cargo test --locked --workspace --exclude tests
	cargo test --locked --package tests -- --test-threads=1 --nocapture

.PHONY: test-volumes
test-volumes: build images ## Passes the tests of volumes, with 200 operations of the canaries; CANARY_OPS=N, SEED=N
	CANARY_OPS=$${CANARY_OPS:-200} cargo test --locked --package tests $(VOLUME_TESTS:%=--test %) -- --test-threads=1 --nocapture

.PHONY: test-applications
test-applications: build images-applications ## Passes the applications of examples/ through losses and updates; APPLICATIONS=etcd,zookeeper
	APPLICATIONS=$${APPLICATIONS:-all} cargo test --locked --package tests --test applications -- --test-threads=1 --nocapture

.PHONY: check
check: setup ## fmt, clippy, the purity lint, the lint of the contracts, the table of fields
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- --deny warnings
	cargo run --locked --quiet --package xtask -- purity
	cargo run --locked --quiet --package xtask -- proto
	cargo run --locked --quiet --package xtask -- fields --check

.PHONY: bless
bless: setup ## Takes new lines of the contracts into proto/contract.lock, writes docs/fields.md
	cargo run --locked --quiet --package xtask -- proto --bless
	cargo run --locked --quiet --package xtask -- fields

.PHONY: sim
sim: setup ## Runs the simulation; SEEDS=N
	cargo build --locked --package sim --bin sim
	cargo build --locked --release --package sim --bin sim
	@debug=$$($(TARGET_DIR)/debug/sim --seeds 20 --hash); release=$$($(TARGET_DIR)/release/sim --seeds 20 --hash); \
	 if [ "$$debug" != "$$release" ]; then \
	   echo "the same seeds give another history in debug ($$debug) than in release ($$release)" >&2; exit 1; \
	 fi
	$(TARGET_DIR)/release/sim --seeds $(SEEDS)

.PHONY: mutants
mutants: setup ## Plants one mistake after the other and shows that the simulation finds it
	cargo run --locked --release --package sim --features mutants --bin mutants

.PHONY: bench
bench: setup ## Measures ordered bring-up against raw etcd; writes target/bench.json
	@mkdir -p target
	cargo build --locked --release --package cli --package tests
	BERTH_BIN=$(abspath $(TARGET_DIR)/release/berth) $(TARGET_DIR)/release/bench --out target/bench.json

.PHONY: lab-up
lab-up: build images ## Brings a three-node lab up
	@$(SUDO) $(BERTH) lab up --nodes 3

.PHONY: lab-down
lab-down: ## Takes the lab down; leaves nothing behind
	@$(SUDO) $(BERTH) lab down
