#!/usr/bin/env bash
# Bundles the page and runs one of its programs:
#
#   run.sh observe …    the page beside all that it shows; arguments as in observe.mjs
#   run.sh check …      what becomes of each panel, as JSON; arguments as in check.mjs
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
viewer=$root/target/viewer
if [ ! -d "$viewer/node_modules" ]; then
    echo "the page's modules are missing: run scripts/test-setup.sh" >&2
    exit 1
fi
# Modules are looked for beside the files that import them.
cp -r "$root"/grafana/viewer/{src,*.mjs} "$viewer"
cd "$viewer"
# The Node of the tests' environment: the system's may be too old.
PATH=$root/target/sdk-venv/bin:$PATH
node build.mjs "$viewer/dist"
program=$1
shift
exec node "$program.mjs" --root "$root" "$@"
