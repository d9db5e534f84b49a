#!/usr/bin/env bash
# Make an environment on top of .venv, if it is not there: scripts/beside_venv.sh FOLDER [pip install argument ...]
# All that is in .venv can be imported in it; pip adds the rest, and torchrun starts its Python.
set -euo pipefail
venv=$1
shift
[ ! -f "$venv/complete" ] || exit 0
.venv/bin/python -m venv --clear "$venv"
site='import sysconfig; print(sysconfig.get_path("purelib"))'
# Not the folder alone: its own .pth files hold this package and its start-up file.
echo "import site; site.addsitedir('$(.venv/bin/python -c "$site")')" > "$("$venv/bin/python" -c "$site")/main.pth"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"
printf '#!/bin/sh\nexec "%s" -m torch.distributed.run "$@"\n' "$PWD/$venv/bin/python" > "$venv/bin/torchrun"
chmod +x "$venv/bin/torchrun"
touch "$venv/complete"
