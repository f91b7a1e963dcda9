# The few verbs of this repository; CI calls the same ones.

.PHONY: demo observe screenshots test check golden torture release bench help

help: ## Show this list.
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

demo: ## Build Taffrail and show it at work, without a key or a server.
	cargo run --locked -- demo

observe: ## The dashboards of the demo's traffic, with a Prometheus and a Postgres, until Ctrl-C.
	scripts/test-setup.sh
	cargo build --locked
	grafana/viewer/run.sh observe

screenshots: ## Draw every dashboard into grafana/screenshots, after twelve minutes of the demo's traffic.
	scripts/test-setup.sh
	cargo build --locked
	grafana/viewer/run.sh observe --pictures $(CURDIR)/grafana/screenshots --minutes 12

test: ## Set up what the tests need, then lint and run them all.
	scripts/test-setup.sh
	$(MAKE) check
	cargo test --locked

check: ## Format, lints and documentation, warnings as errors.
	cargo fmt --all -- --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet

golden: ## Rewrite golden files and generated documents; review the diff like code.
	UPDATE_GOLDEN=1 cargo test --locked

torture: ## The long forms of the reliability tests, on a release build, one after the other.
	scripts/test-setup.sh
	TAFFRAIL_TORTURE=1 cargo test --locked --release --test suite -- --nocapture --test-threads=1 \
		torture:: limits:: outages:: poison::

release: ## The binary that is shipped: static, and optimised by a profile of the demo; some 15 minutes.
	RUSTFLAGS="-C target-feature=+crt-static" scripts/build-release.sh target/optimised/taffrail

bench: ## What Taffrail costs beside nginx, as it is shipped, and what its parts cost.
	scripts/test-setup.sh bench
	$(MAKE) release
	TAFFRAIL_BINARY=$(CURDIR)/target/optimised/taffrail cargo bench --locked
