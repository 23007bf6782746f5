#!/bin/sh
# Install the programs that the tests start and this machine lacks: `make test` runs this before anything else.
# As root on Debian it installs their packages; elsewhere it names them in one line and fails.
set -eu

PYTHON=${PYTHON:-python3}

lacks() {
    ! command -v "$1" >/dev/null 2>&1
}

# Print the Debian packages of the programs that are missing.
missing() {
    if lacks make; then echo make; fi
    if lacks git; then echo git; fi
    # promtool, which checks metrics and alert rules, is in the same package.
    if lacks prometheus || lacks promtool; then echo prometheus; fi
    if lacks prometheus-pushgateway; then echo prometheus-pushgateway; fi
    if lacks redis-server || lacks redis-cli; then echo redis-server; fi
    # Chromium shows no text without a font.
    if lacks chromium; then echo chromium fonts-dejavu-core; fi
    if lacks "$PYTHON"; then
        echo python3 python3-venv
    elif ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        echo python3-venv
    fi
    # pip asks its index over TLS.
    if ! lacks apt-get && [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then echo ca-certificates; fi
}

fail() {
    echo "tests/system-packages.sh: $*" >&2
    exit 1
}

# shellcheck disable=SC2046 # each word is a package
set -- $(missing)
[ $# -gt 0 ] || exit 0
if lacks apt-get; then
    fail "the tests need programs that this machine lacks; install them (names of Debian's packages): $*"
fi
if [ "$(id -u)" != 0 ]; then
    fail "the tests need programs that this machine lacks; install them: sudo apt-get install $*"
fi
echo "Installing the programs that the tests need: $*"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null || fail "apt-get update failed; these packages are missing: $*"
apt-get install -y -qq --no-install-recommends "$@" </dev/null || fail "apt-get could not install: $*"
# shellcheck disable=SC2046 # each word is a package
set -- $(missing)
[ $# -eq 0 ] || fail "still missing after the installation: $*"
