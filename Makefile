# The few verbs of this repository; CI calls the same ones.

.PHONY: demo test check golden torture bench help

help: ## Show this list.
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: ## Build Taffrail and show it at work, without a key or a server.
	cargo run --locked -- demo

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

bench: ## What Taffrail costs beside nginx, and what its parts cost, measured on a release build.
	scripts/test-setup.sh bench
	cargo bench --locked
