#!/bin/bash
# The server's page in headless Chromium, beside a server with known and hostile answers. Screenshots go to
# $BUILD/page.
. tests/program/lib.sh
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome) ||
    { ok "skipped: no chromium (apt-get install chromium)"; exit 0; }
command -v python3 >/dev/null || { ok "skipped: no python3"; exit 0; }
policy="default-src 'none'; connect-src 'self'; img-src data:; $(tr -d '"\n' <"$BUILD/gen/runtime/page_policy.inc")"
python3 tests/slow/page.py --chromium "$chromium" --page runtime/page.html --policy "$policy" --shots "$BUILD/page"
