#!/usr/bin/env bash
# Builds the control plane of the end-to-end tests from its published Go modules: etcd, kube-apiserver,
# kube-controller-manager and kubectl. Prints the directory that holds them; what it does goes to standard error.
#
# The directory is named after the versions and lives in the user's cache folder, so that a fresh clone on the same
# machine builds nothing: $SOCKEYE_CACHE, else $XDG_CACHE_HOME/sockeye, else ~/.cache/sockeye. A first build takes about
# ten minutes on two cores and 4 GB of Go's own caches; another run returns at once.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { printf 'controlplane: %s\n' "$*" >&2; }

command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
command -v go >/dev/null || { say "needs Go in PATH: 1.26, or one from 1.21 on, which fetches it (https://go.dev/dl)"; exit 1; }
# Flags of the caller's environment would change what is built, and where it goes.
unset GOFLAGS GOBIN GOWORK
export CGO_ENABLED=0

version() { # module, folder
  sed -nE "s|^require $1 (v[0-9.]+)\$|\1|p" "$here/$2/go.mod"
}
kubernetes=$(version k8s.io/kubernetes kubernetes)
etcd=$(version go.etcd.io/etcd/server/v3 etcd)
minor=${kubernetes#v1.}
stamp="-X k8s.io/component-base/version.gitVersion=$kubernetes -X k8s.io/component-base/version.gitMajor=1"
stamp="$stamp -X k8s.io/component-base/version.gitMinor=${minor%%.*} -X k8s.io/client-go/pkg/version.gitVersion=$kubernetes"
sums=$(cd "$here" && { cat {etcd,kubernetes}/go.{mod,sum}; echo "$stamp"; } | sha256sum | cut -c1-12)
bin=${SOCKEYE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sockeye}/controlplane/$kubernetes-etcd-$etcd-$sums

mkdir -p "$bin"
exec 9>"$bin/.lock"
flock 9

build() { # name, folder, linker flags, package
  [ -x "$bin/$1" ] && return
  say "building $1 in $bin"
  # Two compilers at most: the machine has other work.
  (cd "$here/$2" && nice -n 15 go build -p "${JOBS:-2}" -trimpath -buildvcs=false -ldflags "-s -w $3" -o "$bin/.$1.new" "$4")
  mv "$bin/.$1.new" "$bin/$1"
}

build etcd etcd "" .
for name in kubectl kube-apiserver kube-controller-manager; do
  build "$name" kubernetes "$stamp" "k8s.io/kubernetes/cmd/$name"
done
echo "$bin"
