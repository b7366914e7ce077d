# shellcheck shell=bash disable=SC2154 # `run`, which sources this, sets the folders W and CACHE
# Gets what the rig needs: Debian's packages, libkrunfw and the outer VM's kernel. `run` sources this
# file and calls need, firmware (makes the file $KRUNFW) and outer_vm (makes the folder $OUTER).

# The guest's kernel, as a shared library. It ships in a wheel on PyPI.
WHEEL=microsandbox==0.7.11
WHEEL_SHA256=65f1e4bbf8d721c9f7f557329fb6c8cf41f554c1c6942eac8b941198fa283fe0
KRUNFW_MEMBER=microsandbox/_bundled/lib/libkrunfw.so.5.6.1
KRUNFW_SHA256=3854efcd3fe625528fa00207d97586d9790db8c436bb6881a43986604336d18e
KRUNFW=$CACHE/libkrunfw-5.6.1/libkrunfw.so.5
OUTER=$CACHE/outer-vm # vmlinuz, busybox and KVM's modules

quietly() { # COMMAND...; shows its output only if it fails
  "$@" >"$W/log" 2>&1 || { cat "$W/log" >&2; die "this command failed, with the output above: $*"; }
}
as_root() { # COMMAND; only packages need root
  [ "$EUID" = 0 ] || die "this needs root; run it as root, then start again: $*"
  say "as root: $*"
  DEBIAN_FRONTEND=noninteractive quietly bash -c "$*"
}
install() { as_root "apt-get update && apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=600 $*"; }
need() { # COMMAND=PACKAGE...
  local pair missing=()
  for pair; do command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}"); done
  [ ${#missing[@]} = 0 ] || install "${missing[@]}"
}

# A cache folder is filled under another name, gets its digests and is then renamed. It is used only
# if its files match the digests.
intact() { (cd "$1" 2>/dev/null && sha256sum --status -c SHA256SUMS 2>/dev/null); }
cached() { # FOLDER FILL_FUNCTION
  intact "$1" && return
  [ ! -e "$1" ] || say "$1 is damaged: fetching it again"
  mkdir -p "$CACHE"
  FILLING=$(mktemp -d "$CACHE/filling.XXXXXX")
  "$2" "$FILLING"
  (cd "$FILLING" && sha256sum -- * >"$W/sums" && mv "$W/sums" SHA256SUMS)
  intact "$1" || rm -rf "$1" # another run may have filled it meanwhile
  mv -T "$FILLING" "$1" 2>/dev/null || rm -rf "$FILLING"
  FILLING=''
  intact "$1" || die "cannot fill the cache folder $1"
}

fill_krunfw() { # FOLDER
  need python3=python3
  python3 -m pip --version >/dev/null 2>&1 || install python3-pip
  say "downloading $WHEEL"
  # The options name the wheel outright: pip's own choice would depend on its Python.
  echo "$WHEEL --hash=sha256:$WHEEL_SHA256" >"$W/wheel.txt"
  quietly python3 -m pip download --no-deps --require-hashes -r "$W/wheel.txt" -d "$W/wheel" \
    --only-binary=:all: --platform manylinux_2_28_x86_64 --implementation cp --abi abi3 --python-version 3.10
  python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' \
    "$W"/wheel/*.whl "$KRUNFW_MEMBER" >"$1/libkrunfw.so.5"
  rm -r "$W/wheel"
}
firmware() {
  cached "$(dirname "$KRUNFW")" fill_krunfw
  echo "$KRUNFW_SHA256  $KRUNFW" | sha256sum --status -c || die "$KRUNFW is not the pinned libkrunfw: its SHA-256 is wrong"
  say "the guest's kernel is ready: $KRUNFW"
}

outer_vm() { cached "$OUTER" fill_outer; }
kernel_package() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p'; }
# Unpacks the packages without installing them: this needs no root and runs none of their scripts.
fill_outer() { # FOLDER
  local kernel
  kernel=$(kernel_package)
  [ -n "$kernel" ] || { as_root apt-get update; kernel=$(kernel_package); }
  [ -n "$kernel" ] || die "the outer VM needs Debian's kernel, but apt has no package linux-image-cloud-amd64"
  say "downloading $kernel and busybox-static"
  mkdir "$W/deb" "$W/unpacked"
  (cd "$W/deb" && quietly apt-get download "$kernel" busybox-static)
  for deb in "$W"/deb/*.deb; do dpkg -x "$deb" "$W/unpacked"; done
  cp "$W"/unpacked/boot/vmlinuz-* "$1/vmlinuz"
  cp "$W/unpacked/bin/busybox" "$1/"
  find "$W/unpacked" -regex '.*/\(irqbypass\|kvm\|kvm-amd\)\.ko\(\.xz\)?' -exec cp {} "$1/" \;
  ! compgen -G "$1/*.xz" >/dev/null || unxz "$1"/*.xz
  rm -r "$W/deb" "$W/unpacked"
}
