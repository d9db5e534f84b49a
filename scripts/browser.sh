#!/usr/bin/env bash
# See whether Chromium and its driver are there, which the tests of the report page drive. Where they are missing,
# `--install-browser` installs them with apt-get; without it, say what to install and stop.
set -euo pipefail
if command -v chromedriver > /dev/null && { command -v chromium || command -v chromium-browser || command -v google-chrome; } > /dev/null; then
  exit 0
fi
needs="The tests of the report page need Chromium and chromedriver on the PATH: install the packages chromium and chromium-driver (Debian) or their like"
if [ "${1:-}" != --install-browser ]; then
  echo "$needs, or let scripts/test.sh --install-browser do so with apt-get." >&2
  exit 1
fi
root=()
[ "$(id -u)" -eq 0 ] || root=(sudo -n)
if ! command -v apt-get > /dev/null || ! "${root[@]}" true 2> /dev/null; then
  echo "$needs; --install-browser takes apt-get, as root or by a sudo that asks for no password." >&2
  exit 1
fi
echo "[browser] installing chromium and chromium-driver"
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver > /dev/null
