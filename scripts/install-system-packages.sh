#!/usr/bin/env bash
# What the tests need beside Python, where apt can give it: Chromium and its driver for tests/browser, PostgreSQL's server
# programs for the tests of the doorbell. Quiet, and done at once where everything is there. Where it cannot help, those
# tests are skipped, and say so.
set -euo pipefail

have() { command -v "$1" >/dev/null; }

wanted=()
if ! have chromedriver || ! { have chromium || have google-chrome; }; then
    wanted+=(chromium chromium-driver fonts-dejavu-core)
fi
if ! have initdb && ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
    wanted+=(postgresql)
fi
[ "${#wanted[@]}" -gt 0 ] || exit 0
if ! have apt-get || [ "$(id -u)" != 0 ]; then
    echo "Not here, and no root with apt to install them: ${wanted[*]}. The tests that need them will be skipped." >&2
    exit 0
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -qq --no-install-recommends "${wanted[@]}"; } >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    exit 1
fi
