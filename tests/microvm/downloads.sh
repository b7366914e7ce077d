# shellcheck shell=bash disable=SC2154 # W and CACHE are the folders of the script that reads this
# What the rig is made of: Debian's packages, libkrunfw, and the outer VM's kernel. Sourced by `run`,
# for its functions need, firmware (the file $KRUNFW) and outer_vm (the folder $OUTER).

# The guest's kernel, as a shared library: it ships in a wheel of the package index PyPI.
WHEEL=microsandbox==0.7.11
WHEEL_SHA256=65f1e4bbf8d721c9f7f557329fb6c8cf41f554c1c6942eac8b941198fa283fe0
KRUNFW_MEMBER=microsandbox/_bundled/lib/libkrunfw.so.5.6.1
KRUNFW_SHA256=3854efcd3fe625528fa00207d97586d9790db8c436bb6881a43986604336d18e
KRUNFW=$CACHE/libkrunfw-5.6.1/libkrunfw.so.5
OUTER=$CACHE/outer-vm # vmlinuz, busybox and the modules of KVM

quietly() { # COMMAND...: its output is of interest if it fails
  "$@" >"$W/log" 2>&1 || { cat "$W/log" >&2; die "failed: $*"; }
}
as_root() { # COMMAND: packages are all that needs root
  [ "$EUID" = 0 ] || die "missing: please run, as root: $*"
  say "$*"
  DEBIAN_FRONTEND=noninteractive quietly bash -c "$*"
}
install() { as_root "apt-get update && apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=600 $*"; }
need() { # COMMAND=PACKAGE...
  local pair missing=()
  for pair; do command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}"); done
  [ ${#missing[@]} = 0 ] || install "${missing[@]}"
}

# A folder of the cache is filled elsewhere and then renamed, whole, with its digests; it is used
# only if they hold.
intact() { (cd "$1" 2>/dev/null && sha256sum --status -c SHA256SUMS 2>/dev/null); }
cached() { # FOLDER FILL_FUNCTION
  intact "$1" && return
  [ ! -e "$1" ] || say "$1 is damaged: fetched again"
  mkdir -p "$CACHE"
  FILLING=$(mktemp -d "$CACHE/filling.XXXXXX")
  "$2" "$FILLING"
  (cd "$FILLING" && sha256sum -- * >"$W/sums" && mv "$W/sums" SHA256SUMS)
  intact "$1" || rm -rf "$1" # intact by now, if another run was faster
  mv -T "$FILLING" "$1" 2>/dev/null || rm -rf "$FILLING"
  FILLING=''
  intact "$1" || die "cannot fill $1"
}

fill_krunfw() { # FOLDER
  need python3=python3
  python3 -m pip --version >/dev/null 2>&1 || install python3-pip
  say "downloads $WHEEL"
  # The wheel is named outright: which one pip would choose depends on its Python.
  echo "$WHEEL --hash=sha256:$WHEEL_SHA256" >"$W/wheel.txt"
  quietly python3 -m pip download --no-deps --require-hashes -r "$W/wheel.txt" -d "$W/wheel" \
    --only-binary=:all: --platform manylinux_2_28_x86_64 --implementation cp --abi abi3 --python-version 3.10
  python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' \
    "$W"/wheel/*.whl "$KRUNFW_MEMBER" >"$1/libkrunfw.so.5"
  rm -r "$W/wheel"
}
firmware() {
  cached "$(dirname "$KRUNFW")" fill_krunfw
  echo "$KRUNFW_SHA256  $KRUNFW" | sha256sum --status -c || die "$KRUNFW is not the pinned libkrunfw"
  say "firmware ready"
}

outer_vm() { cached "$OUTER" fill_outer; }
kernel_package() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p'; }
# The packages are unpacked, not installed: that takes no root, and runs none of their scripts.
fill_outer() { # FOLDER
  local kernel
  kernel=$(kernel_package)
  [ -n "$kernel" ] || { as_root apt-get update; kernel=$(kernel_package); }
  [ -n "$kernel" ] || die "apt knows no linux-image-cloud-amd64: the outer VM needs Debian's kernel"
  say "downloads $kernel and busybox-static"
  mkdir "$W/deb" "$W/unpacked"
  (cd "$W/deb" && quietly apt-get download "$kernel" busybox-static)
  for deb in "$W"/deb/*.deb; do dpkg -x "$deb" "$W/unpacked"; done
  cp "$W"/unpacked/boot/vmlinuz-* "$1/vmlinuz"
  cp "$W/unpacked/bin/busybox" "$1/"
  find "$W/unpacked" -regex '.*/\(irqbypass\|kvm\|kvm-amd\)\.ko\(\.xz\)?' -exec cp {} "$1/" \;
  ! compgen -G "$1/*.xz" >/dev/null || unxz "$1"/*.xz
  rm -r "$W/deb" "$W/unpacked"
}
