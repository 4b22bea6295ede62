# Sourced by quickstart.sh and test.sh.

# need_packages PACKAGE...: installs those Debian packages that are missing.
need_packages() {
  local missing=() package native
  if ! command -v apt-get > /dev/null || ! command -v dpkg-query > /dev/null; then
    echo "This is no Debian or Ubuntu (no apt-get): install what these packages hold by hand: $*" >&2
    local tool
    for tool in meson ninja c++ pkg-config; do
      command -v $tool > /dev/null || { echo "$tool is missing." >&2; return 1; }
    done
    return 0
  fi
  native=$(dpkg --print-architecture)
  for package in "$@"; do
    # A line per architecture: "installed", "not-installed", "config-files"; none for a name it has never seen.
    dpkg-query -W -f='${db:Status-Status} ${Architecture}\n' "$package" 2> /dev/null |
      grep -qx "installed \($native\|all\|${package##*:}\)" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0

  local sudo=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo > /dev/null; then
      echo "Packages are missing and there is no sudo. As root: apt-get install ${missing[*]}" >&2
      return 1
    fi
    sudo=(sudo)
  fi
  echo "Installing: ${missing[*]}"
  if [[ " ${missing[*]} " == *:arm64\ * ]]; then "${sudo[@]}" dpkg --add-architecture arm64 || return 1; fi
  "${sudo[@]}" apt-get update -qq || return 1
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null || {
    echo "apt-get could not install: ${missing[*]}" >&2
    return 1
  }
}

# configure DIRECTORY MESON_OPTION...: sets a build directory up, or gives it these options if it is there.
configure() {
  local directory=$1
  shift
  if [ -f "$directory/build.ninja" ]; then
    meson configure "$directory" "$@"
  else
    rm -rf "$directory"
    meson setup "$directory" "$@"
  fi
}

build_packages=(g++ meson ninja-build pkg-config libhwy-dev libcli11-dev libfmt-dev nlohmann-json3-dev)
mpi_packages=(libopenmpi-dev openmpi-bin)  # optional: fovea_mpi_attend
# libgomp1:arm64 and libstdc++6:arm64 are what qemu-aarch64 -L / loads.
aarch64_packages=(g++-aarch64-linux-gnu libhwy-dev:arm64 libgomp1:arm64 libstdc++6:arm64 qemu-user)
