#!/usr/bin/env bash
# Builds the binary that is shipped: `cargo build --release`, guided by a profile of the demo.
#
#   scripts/build-release.sh [OUTPUT]       by default target/optimised/taffrail
#
# The profile tells the compiler which branches are taken and what runs often, so that the code of a
# request is inlined and laid out for it. The demo speaks as every provider does, over http and https,
# and ends by itself; it runs with SQLite and, where a Postgres is installed, with that. What it does
# not run is compiled for size. LLD puts what a sidecar runs at rest together, in the order in which it
# first runs, so that the rest of the file stays on disk.
#
# Needs llvm-profdata of rustc's LLVM: `rustup component add llvm-tools`, or Debian's llvm-N.
# RUSTFLAGS of the caller hold for both builds.
set -euo pipefail
cd "$(dirname "$0")/.."

output=${1:-target/optimised/taffrail}
host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
work=$PWD/target/optimised
flags=${RUSTFLAGS:-}

profdata=$(ls "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" 2>/dev/null ||
    command -v "llvm-profdata-$llvm" || true)
if [ -z "$profdata" ]; then
    echo "llvm-profdata is missing: run \`rustup component add llvm-tools\`, or install llvm-$llvm" >&2
    exit 1
fi

build() { # flags
    # For a named target, so that the flags do not reach what runs while building.
    RUSTFLAGS="$flags $1" cargo build --locked --release --bin taffrail \
        --target "$host" --target-dir "$work/build"
}
binary=$work/build/$host/release/taffrail

demo() { # arguments
    LLVM_PROFILE_FILE="$work/demo-%p.profraw" "$binary" demo --seconds 60 "$@" | tail -n 1
}
rest() {
    rm -rf "$work/rest"
    mkdir "$work/rest"
    (cd "$work/rest" && TAFFRAIL_PROXY__LISTEN=127.0.0.1:0 TAFFRAIL_ADMIN__LISTEN=127.0.0.1:0 \
        LLVM_PROFILE_FILE="$work/rest.profraw" timeout --preserve-status 5 "$binary" run)
}

# A throwaway Postgres, run by somebody other than root, who may not.
as_somebody() {
    if [ "$(id -u)" -eq 0 ]; then
        setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"
    else
        "$@"
    fi
}
programs=$(dirname "$(command -v initdb || ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null | tail -n 1)")
cluster=""
stop_postgres() {
    if [ -n "$cluster" ]; then
        (cd / && as_somebody "$programs/pg_ctl" --pgdata "$cluster/data" --mode immediate --silent stop) || true
        rm -rf "$cluster"
    fi
}
trap stop_postgres EXIT
start_postgres() {
    cluster=$(mktemp -d)
    if [ "$(id -u)" -eq 0 ]; then
        chown postgres "$cluster"
    fi
    (cd / && as_somebody "$programs/initdb" --pgdata "$cluster/data" --auth trust --username postgres >/dev/null &&
        as_somebody "$programs/pg_ctl" --pgdata "$cluster/data" --log "$cluster/log" --wait --silent \
            --options "-h '' -k $cluster" start)
}

rm -f "$work"/*.profraw
echo "building the binary that counts"
build "-Cprofile-generate -Cllvm-args=-pgo-temporal-instrumentation"
echo "running the demo with SQLite"
demo
if [ "$programs" != . ]; then
    echo "running the demo with Postgres"
    start_postgres
    demo --store "postgres://postgres@localhost/postgres?host=$cluster"
fi
echo "running a sidecar without traffic"
rest
"$profdata" merge --output "$work/all.profdata" "$work"/*.profraw
"$profdata" merge --output "$work/rest.profdata" "$work/rest.profraw"

echo "building the binary that is shipped"
layout=""
if [ "$host" = x86_64-unknown-linux-gnu ]; then
    # Where rustc links with LLD, which takes an order: what runs at rest, then what runs at all.
    for profile in rest all; do
        "$profdata" order "$work/$profile.profdata"
    done | awk '!/^#/ && !seen[$0]++' >"$work/order"
    layout="-Clink-arg=-Wl,--symbol-ordering-file=$work/order -Clink-arg=-Wl,--no-warn-symbol-ordering"
fi
build "-Cprofile-use=$work/all.profdata $layout"
mkdir -p "$(dirname "$output")"
cp "$binary" "$output"
ls -l "$output"
