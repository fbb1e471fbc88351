#!/usr/bin/env bash
# Installs what the tests need beside Python, with apt and as root: Chromium and its driver for tests/browser, PostgreSQL's
# server programs for the tests of the webhook receiver, and Redis, nginx and PgBouncer for make fleet. Without them the
# tests are skipped, with a reason, and make fleet names what is missing. None of the servers is started.
set -euo pipefail

have() { PATH="$PATH:/usr/sbin" command -v "$1" >/dev/null; }

wanted=()
if ! have chromedriver || ! { have chromium || have google-chrome; }; then
    wanted+=(chromium chromium-driver fonts-dejavu-core)
fi
if ! have initdb && ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
    wanted+=(postgresql)
fi
have redis-server || wanted+=(redis-server)
have nginx || wanted+=(nginx)
have pgbouncer || wanted+=(pgbouncer)
[ "${#wanted[@]}" -gt 0 ] || exit 0
if ! have apt-get || [ "$(id -u)" != 0 ]; then
    echo "Missing: ${wanted[*]}. Installing them needs apt and root. The tests that need them will be skipped." >&2
    exit 0
fi

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
trap 'rm -f "$log"' EXIT
if [ ! -e "$policy" ]; then
    # Debian's packages start their servers unless this forbids it; the tests start their own.
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$log" "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -qq --no-install-recommends "${wanted[@]}"; } >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    exit 1
fi
