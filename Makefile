# `make` alone prints what there is. Everything stays on this machine. Network namespaces need root: `make demo` asks
# sudo for it where it must, `make test` and `make bench` want to be run as root.

SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help demo demo-down test vm check bench fuzz deps build cni image install uninstall root rust k8s-build k8s-chart k8s-up k8s-test k8s-life k8s-down

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
SEAWAY := $(TARGET)/release/seaway
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)

PREFIX ?= /usr/local
DESTDIR ?=
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
DATADIR ?= $(PREFIX)/share
UNITDIR ?= $(PREFIX)/lib/systemd/system
# Where container runtimes look for CNI plugins, whatever PREFIX is.
CNIDIR ?= /opt/cni/bin

help: ## print this
	@echo "Seaway $(VERSION): the network of a container cluster. Targets:"
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

# --- what the targets need -------------------------------------------------------------------------------------------

# program:Debian package. Missing ones are installed, nothing else is touched.
NEEDS_BUILD := cc:gcc as:binutils
NEEDS_LAB := ip:iproute2 nft:nftables ping:iputils-ping nsenter:util-linux
NEEDS_TEST := $(NEEDS_LAB) curl:curl conntrack:conntrack tcpdump:tcpdump iperf3:iperf3 jq:jq kubectl:kubernetes-client groff:groff-base \
	/usr/lib/cni/bridge:containernetworking-plugins dnsmasq:dnsmasq-base udhcpd:udhcpd iptables:iptables $(NEEDS_VM) $(NEEDS_INTEROP)
# The machine of tests/vm, and tools that its tests run inside. Its kernel is fetched by the tests, not installed.
NEEDS_VM := $(NEEDS_LAB) qemu-system-x86_64:qemu-system-x86 depmod:kmod ipvsadm:ipvsadm tcpdump:tcpdump conntrack:conntrack \
	dnsmasq:dnsmasq-base /usr/lib/cni/bridge:containernetworking-plugins
# What Debian does not have is built by the tests from its released Go modules, once; Docker and firewalld are unpacked, since
# installed they would change this machine's own firewall.
NEEDS_INTEROP := containerd:containerd runc:runc podman:podman busybox:busybox-static go:golang-go dbus-daemon:dbus-daemon python3:python3
NEEDS_BENCH := $(NEEDS_LAB) iperf3:iperf3 jq:jq curl:curl openssl:openssl conntrack:conntrack go:golang-go iptables:iptables /usr/lib/cni/bridge:containernetworking-plugins
NEEDS_FUZZ := c++:g++
NEEDS_IMAGE := musl-gcc:musl-tools
NEEDS_K8S := $(NEEDS_LAB) $(NEEDS_IMAGE) go:golang-go runc:runc conntrack:conntrack ipset:ipset iptables:iptables openssl:openssl jq:jq \
	debootstrap:debootstrap ssh-keygen:openssh-client /usr/sbin/sshd:openssh-server

# $(call need,LIST): a shell command.
define need
	missing=(); for n in $(1); do command -v "$${n%%:*}" >/dev/null || missing+=("$${n##*:}"); done; \
	if (( $${#missing[@]} )); then \
		if (( $$(id -u) )); then echo "missing: $${missing[*]}. Run: sudo apt-get install $${missing[*]}" >&2; exit 1; fi; \
		echo "installing $${missing[*]}"; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get install -qq -y --no-install-recommends "$${missing[@]}" >/dev/null 2>&1 || { apt-get update -qq; \
		apt-get install -qq -y --no-install-recommends "$${missing[@]}" >/dev/null; }; \
	fi
endef

deps: rust ## install the Debian packages that demo, test, bench and fuzz need, only the missing ones
	@$(call need,$(NEEDS_BUILD) $(NEEDS_TEST) $(NEEDS_BENCH) $(NEEDS_FUZZ))

rust:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust 1.95 or newer (https://rustup.rs)" >&2; exit 1; }
	@$(call need,$(NEEDS_BUILD))

root:
	@(( $$(id -u) == 0 )) || { echo "run as root (sudo make $(MAKECMDGOALS)): network namespaces are made" >&2; exit 1; }

# --- to look at ------------------------------------------------------------------------------------------------------

build: rust
	@$(CARGO) build --release --locked -p seaway
	@$(CARGO) build --release --locked -p seaway-pause
	@$(MAKE) --no-print-directory cni

# A runtime starts the plugin for every pod. Static and at a fixed address it needs no dynamic linker (0.25 ms); with
# musl it does not ask the processor what it can do, each answer of which a virtual machine's host gives (0.25 ms).
MUSL := $(shell uname -m)-unknown-linux-musl
CNI_FLAGS := --locked --profile cni -p seaway-cni --bin seaway-cni
CNI_STATIC := -C target-feature=+crt-static -C relocation-model=static

cni: rust
	@libs() { [[ -d $$(rustc --print target-libdir --target $(MUSL))/ ]]; }; \
	if libs || { rustup target add $(MUSL) >/dev/null 2>&1 && libs; }; then \
		$(CARGO) rustc --target $(MUSL) $(CNI_FLAGS) -- $(CNI_STATIC); built=$(TARGET)/$(MUSL)/cni; \
	else \
		echo "this Rust has no standard library for $(MUSL): the CNI plugin is linked with glibc and starts slower"; \
		$(CARGO) rustc $(CNI_FLAGS) -- $(CNI_STATIC); built=$(TARGET)/cni; \
	fi; \
	install -D "$$built/seaway-cni" $(TARGET)/release/seaway-cni

# One layer with two static programs: no shell, no library, no builder.
IMAGE := $(TARGET)/image/seaway.tar
IMAGE_NAME ?= localhost/seaway:$(VERSION)

image: cni ## the image of deploy/seaway.yaml as an OCI archive, for `ctr image import`, podman or skopeo
	@$(call need,$(NEEDS_IMAGE))
	@rustup target add $(MUSL) >/dev/null 2>&1 || true
	@$(CARGO) build --release --locked --target $(MUSL) -p seaway
	@$(CARGO) xtask image --out $(IMAGE) --name $(IMAGE_NAME) --gzip 9 --most 31457280 \
		--file /usr/local/bin/seaway=$(TARGET)/$(MUSL)/release/seaway \
		--file /usr/local/bin/seaway-cni=$(TARGET)/release/seaway-cni \
		--label org.opencontainers.image.title=seaway --label org.opencontainers.image.version=$(VERSION) \
		--label org.opencontainers.image.licenses=Apache-2.0 --entrypoint /usr/local/bin/seaway
	@echo $(IMAGE)

AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

demo: build ## a three-node cluster on this machine: build, up, test, trace
	@$(call need,$(NEEDS_LAB))
	@# A demo of before, if there is one, makes way.
	@if [[ -e /run/seaway/labs/$(LAB) ]]; then $(AS_ROOT) $(SEAWAY) lab down --name $(LAB); fi
	@echo; echo '$$ seaway lab up examples/shop --nodes 3 --backend vxlan --ip dual --name $(LAB)'
	@$(AS_ROOT) $(SEAWAY) lab up examples/shop --nodes 3 --backend vxlan --ip dual --name $(LAB)
	@echo; echo '$$ seaway lab test --name $(LAB)'
	@$(AS_ROOT) $(SEAWAY) lab test --name $(LAB)
	@echo; echo '$$ seaway trace $(DEMO_TRACE) --name $(LAB)'
	@$(AS_ROOT) $(SEAWAY) trace $(DEMO_TRACE) --name $(LAB)
	@printf '\nThe cluster keeps running. Next, type:\n\n'; printf '  %-66s  # %s\n' $(DEMO_NEXT)

# The demo's lab; others may be up beside it.
LAB := demo
# From which pod to which Service port the demo follows a packet.
DEMO_TRACE := shop/web shop/api:80
DEMO_NEXT = \
	'$(strip $(AS_ROOT) $(SEAWAY)) lab status --name $(LAB)' 'nodes, how many pods, addresses, processes' \
	'$(strip $(AS_ROOT) $(SEAWAY)) lab get services -A --name $(LAB)' 'as kubectl prints them' \
	'$(strip $(AS_ROOT) $(SEAWAY)) trace $(DEMO_TRACE) --probe --name $(LAB)' 'the same way, with a real packet' \
	'$(strip $(AS_ROOT) $(SEAWAY)) lab shell node1 --name $(LAB)' 'look around: ip route, nft list ruleset' \
	'make demo-down' 'remove every trace of it'

demo-down: ## remove the demo: every namespace, process, mount and file of it
	@# Also in a clone that has built nothing, or no more: a demo of another is removed all the same.
	@if [[ ! -x $(SEAWAY) && -e /run/seaway/labs/$(LAB) ]]; then $(MAKE) build; fi; \
	if [[ -x $(SEAWAY) ]]; then $(AS_ROOT) $(SEAWAY) lab down --name $(LAB); else echo 'There is no demo: nothing to remove.'; fi

# --- to trust --------------------------------------------------------------------------------------------------------

# The crates without effects: no root, no kernel, no socket.
PURE := -p seaway-types -p seaway-intent -p seaway-plan -p seaway-resolve -p seaway-controller -p seaway-kernel-api \
	-p seaway-telemetry -p xtask

check: rust ## formatting, lints, unit tests of the pure crates: before every commit
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --locked --workspace --all-targets --quiet -- -D warnings
	@$(CARGO) xtask check
	@tests/k8s/e2e-lists
	@$(CARGO) test --locked --quiet $(PURE) --lib --bins

test: root rust ## everything that proves it: lints, house checks, all tests, with real packets
	@$(call need,$(NEEDS_TEST))
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --locked --workspace --all-targets --quiet -- -D warnings
	@$(CARGO) xtask check
	@$(CARGO) build --locked --workspace --bins
	@tests/k8s/build kubectl etcd kube-apiserver
	@$(CARGO) test --locked --workspace --doc --quiet
	@# Tests with labs, kernels and clocks, one at a time: two cores are no place for two clusters.
	@failed=0; $(CARGO) test --locked --workspace --lib --bins --no-fail-fast || failed=1; \
	$(CARGO) test --locked --workspace --test '*' --no-fail-fast -- --test-threads=1 || failed=1; exit $$failed

vm: rust ## the tests that need a kernel with more in it than this machine's: in QEMU, no root, no KVM needed
	@$(call need,$(NEEDS_VM))
	@$(CARGO) test --locked -p seaway-tests-vm --no-fail-fast -- --test-threads=1

k8s-build: rust ## a real Kubernetes for k8s-up and k8s-test, from released Go modules; once, half an hour
	@$(call need,$(NEEDS_K8S))
	@tests/k8s/build
	@$(CARGO) build --release --locked -p seaway-pause
	@SEAWAY_PAUSE=$(abspath $(TARGET))/release/seaway-pause tests/k8s/images

k8s-chart: rust ## the Helm chart against the manifest, by Helm itself; no root, no cluster
	@$(call need,go:golang-go jq:jq)
	@$(CARGO) xtask check-manifest
	@tests/k8s/build helm
	@tests/k8s/chart

k8s-up: root k8s-build image ## a Kubernetes of 3 nodes in 3 zones on this machine, with Seaway as its network
	@SEAWAY_IMAGE=$(abspath $(IMAGE)) tests/k8s/up

k8s-test: root ## upstream's own network tests in the cluster of k8s-up, in parts; PARTS=1/8 for one of them
	@tests/k8s/test $(PARTS)

k8s-life: root ## nodes, agents, API server and etcd come, go and come back, under traffic, in the cluster of k8s-up; CASES="..." for some
	@tests/k8s/life $(CASES)

k8s-down: root ## remove every trace of k8s-up but what was built
	@tests/k8s/down

fuzz: rust ## every decoder of foreign bytes for FUZZ_SECONDS (60) each
	@$(call need,$(NEEDS_FUZZ))
	@fuzz/run $(FUZZ_SECONDS)

bench: root rust ## every measured comparison, side by side in one run, with its ratio
	@$(call need,$(NEEDS_BENCH))
	@for b in bench/*; do [[ -f $$b && -x $$b ]] || continue; echo "== $$b"; $$b; echo; done

# --- to keep ---------------------------------------------------------------------------------------------------------

install: build ## binaries, systemd unit, man pages, completions to PREFIX (/usr/local); the CNI plugin to CNIDIR
	install -Dm755 $(SEAWAY) $(DESTDIR)$(BINDIR)/seaway
	install -Dm755 $(TARGET)/release/seaway-pause $(DESTDIR)$(BINDIR)/seaway-pause
	install -Dm755 $(TARGET)/release/seaway-cni $(DESTDIR)$(CNIDIR)/seaway-cni
	@deploy/cni-links install $(DESTDIR)$(CNIDIR)
	install -d $(DESTDIR)$(UNITDIR) $(DESTDIR)$(MANDIR)/man1
	sed 's|@BINDIR@|$(BINDIR)|' deploy/seaway-agent.service > $(DESTDIR)$(UNITDIR)/seaway-agent.service
	chmod 644 $(DESTDIR)$(UNITDIR)/seaway-agent.service
	$(SEAWAY) man $(DESTDIR)$(MANDIR)/man1
	install -m644 deploy/man/seaway-cni.1 deploy/man/seaway-pause.1 $(DESTDIR)$(MANDIR)/man1
	install -d $(DESTDIR)$(DATADIR)/bash-completion/completions $(DESTDIR)$(DATADIR)/zsh/site-functions \
		$(DESTDIR)$(DATADIR)/fish/vendor_completions.d
	$(SEAWAY) completions bash > $(DESTDIR)$(DATADIR)/bash-completion/completions/seaway
	$(SEAWAY) completions zsh > $(DESTDIR)$(DATADIR)/zsh/site-functions/_seaway
	$(SEAWAY) completions fish > $(DESTDIR)$(DATADIR)/fish/vendor_completions.d/seaway.fish

uninstall: ## remove what install put there
	@if [[ -x $(DESTDIR)$(CNIDIR)/seaway-cni ]]; then deploy/cni-links remove $(DESTDIR)$(CNIDIR); fi
	rm -f $(DESTDIR)$(BINDIR)/seaway $(DESTDIR)$(BINDIR)/seaway-pause $(DESTDIR)$(CNIDIR)/seaway-cni $(DESTDIR)$(UNITDIR)/seaway-agent.service
	rm -f $(DESTDIR)$(MANDIR)/man1/seaway.1 $(DESTDIR)$(MANDIR)/man1/seaway-*.1
	rm -f $(DESTDIR)$(DATADIR)/bash-completion/completions/seaway $(DESTDIR)$(DATADIR)/zsh/site-functions/_seaway \
		$(DESTDIR)$(DATADIR)/fish/vendor_completions.d/seaway.fish
