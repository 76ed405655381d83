# The front door. Each target is a short script in scripts/; everything that is made lies below build/.
.DEFAULT_GOAL := help
.PHONY: help run build test test-vulkan unit lint format fuzz vectors clients net sim bench clean distclean
MAKEFLAGS += --no-print-directory

help: ## list the targets
	@printf 'shoal: make TARGET\n\n'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r t d; do printf '%-14s %s\n' "$$t" "$$d"; done

run: ## install, build, fetch a small model, start two nodes here, ask (ONCE=1: then stop)
	@ONCE="$(ONCE)" scripts/run.sh

test: ## install what tests need and run all tests
	@scripts/test.sh

test-vulkan: ## the tests of GPUs, on a driver that needs none; builds ggml with Vulkan first (minutes)
	@scripts/test.sh vulkan

build: ## install what is missing and build build/dev
	@scripts/install.sh build test
	@scripts/libraries.sh
	@scripts/build.sh dev

unit: ## unit tests and fuzz corpora
	@scripts/test.sh unit

vectors: ## token ids and logits against reference engines
	@scripts/test.sh vectors

clients: ## official API clients against a real server
	@scripts/test.sh clients

net: ## real nodes that talk, fail and come back
	@scripts/test.sh net

sim: ## the cluster's decisions through faults, in virtual time (SEEDS=n, ARGS=...)
	@scripts/sim.sh $(or $(SEEDS),10000) $(ARGS)

lint: ## layers, formatting, clang-tidy, links, syntax
	@scripts/test.sh lint

format: ## format the C sources
	@scripts/format.sh

fuzz: ## fuzz every parser (TIME=seconds for each, 60 by default)
	@TIME=$(or $(TIME),60) scripts/fuzz.sh

bench: ## measure speed (MODEL=file, ARGS=... for `shoal bench`)
	@MODEL="$(MODEL)" scripts/bench.sh $(ARGS)

clean: ## remove what was compiled; keep downloads and dependencies
	@rm -rf build/dev build/vulkan build/release build/asan build/tsan build/fuzz build/cov build/rust build/results build/logs build/run

distclean: ## remove build/ with everything in it
	@rm -rf build
