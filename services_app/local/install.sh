#!/bin/sh
# Install the Debian packages that Timonel's stack, lab and tests need, when they are missing; without starting any of
# their services. Arguments: other packages instead.
set -eu

has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

missing=""
need() { # need COMMAND PACKAGE
    has "$1" || missing="$missing $2"
}
if [ $# -gt 0 ]; then
    missing="$*"
else
    ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$missing postgresql"
    need redis-server redis-server
    need nft nftables
    need iptables iptables
    need sshd openssh-server
    need ssh openssh-client
    need ip iproute2
    need conntrack conntrack
    need haproxy haproxy
    need nginx nginx-light
    ls /usr/lib/nginx/modules/ngx_stream_module.so >/dev/null 2>&1 || missing="$missing libnginx-mod-stream"
    need knotd knot
    need unbound unbound
    need dig bind9-dnsutils
    need kubectl kubernetes-client
    need chromium chromium
    need setpriv util-linux
    need visudo sudo
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! has apt-get; then
    echo "missing on this machine:$missing" >&2
    echo "install these packages as root, then run make again" >&2
    exit 1
fi

echo "installing Debian packages:$missing …"
policy=/usr/sbin/policy-rc.d
made_policy=""
if [ ! -e "$policy" ]; then
    # Debian starts a service when its package is installed, unless this says no.
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made_policy=yes
fi
trap '[ -z "$made_policy" ] || rm -f "$policy"' EXIT INT TERM
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    echo "cannot install:$missing (the whole log: $log)" >&2
    exit 1
fi
rm -f "$log"
