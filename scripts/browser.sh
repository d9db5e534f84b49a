#!/usr/bin/env bash
# Install Chromium and its driver, which the tests of the report page drive, where they are missing.
set -euo pipefail
if command -v chromedriver > /dev/null && { command -v chromium || command -v chromium-browser || command -v google-chrome; } > /dev/null; then
  exit 0
fi
root=()
[ "$(id -u)" -eq 0 ] || root=(sudo -n)
if ! command -v apt-get > /dev/null || ! "${root[@]}" true 2> /dev/null; then
  echo "The tests of the report page need Chromium and chromedriver on the PATH: install the packages chromium and chromium-driver (Debian) or their like." >&2
  exit 1
fi
echo "[browser] installing chromium and chromium-driver"
"${root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq --no-install-recommends chromium chromium-driver > /dev/null
