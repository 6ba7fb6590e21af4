# Everything works offline once the module cache and the tools are there. "make" lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

MODE ?= iptables
FORM ?= short
# The packages with kernel tests. They run one after the other, because they measure time with real packets. Their PATH contains
# only the programs that hack/deps.sh names.
KERNEL_PACKAGES := ./internal/host/... ./internal/backend/... ./internal/staleflow/... ./internal/kubeproxy ./cmd/fairlead ./e2e/...
# The tests on a kernel with IPVS. -test.FLAG and NAME=VALUE apply to the package before them.
IPVS_PACKAGES = ./internal/host/hosttest ./internal/host/netlink ./internal/host/ipvs ./internal/host/ipset ./internal/host/link \
	./internal/host/conntrack ./internal/host/xtables ./internal/backend/ipvs -test.run=Kernel -test.timeout=10m \
	./e2e/demo $(IPVS_BINARY) ./e2e $(IPVS_BINARY) -test.run='^TestLeftovers$$/^ipvs$$' -test.timeout=10m \
	./e2e $(IPVS_BINARY) -test.run='^TestCluster$$' -test.timeout=45m ./e2e $(IPVS_BINARY) -test.run='^TestIPVSCorners$$' -test.timeout=30m \
	./e2e $(IPVS_BINARY) -test.run='^TestInstancesIPVS$$' -test.timeout=30m \
	./e2e $(IPVS_BINARY) -test.run='^Test($(PLANE_TESTS))$$' -test.timeout=30m
# The tests of e2e/stage_test.go run on every dataplane that the kernel supports.
PLANE_TESTS := DriftIsNoticed|ForeignMarks|ForwardPolicyDrop|HealthChecksPastAFirewall|MasqueradeSource|RefusedAtOnce
# User-mode Linux is too slow to build anything.
IPVS_BINARY = FAIRLEAD_BINARY=$(CURDIR)/bin/fairlead
# Tests that need both IPVS and nf_tables run in an emulated machine, which is equally slow.
VM_PACKAGES = ./internal/host/hosttest ./internal/backend/ipvs -test.run='^TestKernelRulesAreAsSavedByNFT$$' \
	./e2e $(IPVS_BINARY) -test.run='^TestSwitchesOfIPVS$$' -test.timeout=15m \
	./e2e $(IPVS_BINARY) -test.run='^TestInstancesNFTablesAndIPVS$$' -test.timeout=15m
TOOL := go tool -modfile=hack/tools/go.mod

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/fairlead, one static binary
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/fairlead ./cmd/fairlead

IMAGE ?= fairlead:latest
.PHONY: image
image: ## Build the image with docker, podman, nerdctl or buildah; IMAGE=NAME:TAG
	hack/image/build $(IMAGE)

.PHONY: manifests
manifests: ## Render the kustomize directories and the chart into manifests/testdata
	GOFLAGS= go -C hack/manifests test -count=1 . -update

# Separate targets, so that "make -k" continues after one fails.
.PHONY: lint lint-vet lint-staticcheck lint-format lint-tidy lint-complexity lint-deadcode lint-width
lint: lint-vet lint-staticcheck lint-complexity lint-deadcode lint-format lint-width lint-tidy ## Run go vet, staticcheck, gofmt, go mod tidy; limit complexity and width; find dead code
lint-vet:
	go vet ./...
	for module in hack/manifests hack/bench/plot e2e/tools/balancer; do GOFLAGS= go -C $$module vet ./...; done
lint-staticcheck:
	$(TOOL) staticcheck ./...
# A function with more branches has "gocyclo:ignore" above it, and the reason in its comment.
lint-complexity:
	$(TOOL) gocyclo -over 15 -ignore '_test\.go$$' cmd internal hack e2e
# Whatever ships and is not reachable from main is there for tests alone.
lint-deadcode:
	@unreachable=$$($(TOOL) deadcode ./cmd/fairlead); if [[ -n $$unreachable ]]; then echo "$$unreachable"; exit 1; fi
lint-width:
	hack/width
lint-tidy:
	hack/tidy . hack/tools hack/manifests hack/bench/plot e2e/tools e2e/tools/balancer e2e/tools/containerd e2e/tools/coredns
lint-format:
	@unformatted=$$(gofmt -l .); if [[ -n $$unformatted ]]; then echo "gofmt -l:" $$unformatted; exit 1; fi

.PHONY: test
test: ## Run linters and all tests, as root also kernel tests; list the failures at the end
	@go run ./hack/suite lint test-unit test-kernel test-ipvs test-vm

.PHONY: test-unit
test-unit: ## Run the tests that need neither root nor kernel features
	go test -race ./...

.PHONY: test-kernel
ifeq ($(shell id -u),0)
test-kernel: ## Run the tests with real packets, in network namespaces (root)
	hack/build-servers.sh etcd kube-apiserver >/dev/null
	path=$$(hack/deps.sh path) && PATH=$$path FAIRLEAD_KERNEL_TESTS=1 go test -count=1 -p 1 -timeout 40m $(KERNEL_PACKAGES)
else
test-kernel:
	@echo
	@echo "*** SKIPPED: the kernel tests need root, and this is user $$(id -un). Nothing has been tested with real packets."
	@echo "*** Run them with: sudo make test-kernel"
	@if [[ $${CI:-} == true ]]; then echo "*** In CI that is a failure."; exit 1; fi
endif

.PHONY: test-ipvs
test-ipvs: build ## Run the tests with IPVS, on this kernel or in user-mode Linux
	hack/build-servers.sh >/dev/null
	hack/uml/ipvs-tests $(IPVS_PACKAGES)

.PHONY: test-vm
test-vm: build ## Run the tests that need IPVS and nf_tables on one kernel, in an emulated machine
	hack/vm/tests $(VM_PACKAGES)

INSTALL ?= kubeadm
FOCUS ?=
.PHONY: conformance
conformance: ## Run upstream's tests of Services on nodes with real kubelets (root); MODE=, INSTALL=kubeadm|drop-in|helm|kube-proxy, FOCUS=
	hack/deps.sh cluster
	go run ./e2e/conformance -mode $(MODE) -install $(INSTALL) -focus '$(FOCUS)' -update docs/conformance.md

.PHONY: bench
bench: ## Compare Fairlead with kube-proxy in all modes (root); FORM=short, half an hour, or full, hours
	hack/bench/run $(FORM)

BENCHTIME ?= 1s
.PHONY: bench-go
bench-go: ## Run the Go benchmarks of all packages; BENCHTIME=1x runs each once
	go test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -timeout 30m ./...

.PHONY: demo
demo: build ## Run Fairlead between network namespaces (root); MODE=iptables
	@hack/deps.sh demo
	@CGO_ENABLED=0 go build -o bin/demo ./e2e/demo
	@if [[ $(MODE) == ipvs ]] && ! hack/uml/native; then \
		echo "This kernel has no IPVS, so the demo runs in user-mode Linux, a kernel that runs as a process, at a tenth of the speed."; \
		hack/deps.sh uml; runner="hack/uml/run -timeout 5m"; \
	fi; \
	exec $${runner:-} bin/demo --fairlead bin/fairlead --mode $(MODE)

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin
