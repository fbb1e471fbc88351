#!/usr/bin/env bash
# What the tests need beside Python, where apt can give it: Chromium and its driver, for tests/browser.
# Quiet, and done at once where everything is there. Where it cannot help, those tests are skipped, and say so.
set -euo pipefail

have() { command -v "$1" >/dev/null; }

if have chromedriver && { have chromium || have google-chrome; }; then
    exit 0
fi
if ! have apt-get || [ "$(id -u)" != 0 ]; then
    echo "No chromium and chromedriver here, and no root with apt to install them: tests/browser will be skipped." >&2
    exit 0
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core; } \
    >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    exit 1
fi
