# One door for commands: each target is one plain line, and CI calls the same ones.
SHELL := /bin/bash
TARGET_DIR := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET_DIR)/$(shell rustc --print host-tuple 2>/dev/null)/release
DEMO_SECONDS ?=

.PHONY: help demo demo-real test bench bench-proxy bench-tunnel build peers debian images cluster-up cluster-down cluster-status fmt clippy docs deny unit scenarios chart dashboard fuzz clean

help:            ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

demo: debian-demo build  ## the main job, end to end, on this machine (DEMO_SECONDS=20 stops by itself)
	$(RELEASE)/demo $(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS))

demo-real: debian build peers images cluster-up  ## the same with helm on a real single-node Kubernetes
	deployments/images/load
	$(RELEASE)/demo --real $(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS))

test:            ## everything that proves the project
	@tests/peers/toolchain rust go node
	tests/run

bench: build peers  ## figures beside those of the peers
	$(RELEASE)/bench

bench-proxy: build  ## k8s-proxy door by door beside kubectl proxy (ARGS="--quick", "--real", part names)
	$(RELEASE)/bench-proxy $(ARGS)

bench-tunnel: build  ## the tunnel beside the Go client and rathole (ARGS="bulk --rounds 3", "--quick")
	tests/peers/build chisel rathole
	$(RELEASE)/bench-tunnel $(ARGS)

build: debian-build  ## all programs and tests, one profile
	cargo build --release --workspace --all-targets --locked

peers:           ## real peers, built once into the user's cache folder
	tests/peers/build

debian:          ## Debian packages that the tests need
	tests/peers/debian

.PHONY: debian-build debian-demo
debian-build:
	@tests/peers/toolchain rust
	@tests/peers/debian --only build

debian-demo:
	@tests/peers/toolchain rust go
	@tests/peers/debian --only build
	tests/peers/build chisel grpcurl

images: build    ## OCI image archives from scratch
	deployments/images/build

cluster-up:      ## a real single-node Kubernetes in its own namespaces
	tests/cluster/up

cluster-down:    ## ends it and leaves nothing behind
	tests/cluster/down

cluster-status:  ## what of it runs
	tests/cluster/status

fmt clippy docs deny unit scenarios chart dashboard:  ## one stage of `make test`
	tests/run $@

fuzz:            ## the fuzz targets, 30 seconds each (nightly compiler and cargo-fuzz)
	tests/fuzz 30

clean:           ## what was built here; the peers in the cache folder stay
	cargo clean
