# What tests/packaging/test_deb.py does in a root of its own: this machine's files under a
# layer in memory, so that nothing of it stays. $1: the package, $2: the next version of it.
set -eu
step() { echo "== $1"; }
files() {
    find etc usr/bin usr/lib/systemd usr/share/bash-completion usr/share/doc usr/share/fish \
        usr/share/lintian usr/share/man usr/share/zsh usr/lib/mtls-relay var/lib var/log run \
        \( -path var/lib/dpkg -o -path 'etc/*-' \) -prune -o -print 2>/dev/null |
        grep -vE '^(etc/(passwd|group|shadow|gshadow|\.pwd\.lock|ld\.so\.cache)|run/systemd.*)$' |
        sort
}
as_relay() { setpriv --reuid relay --regid relay --clear-groups "$@"; }
cd /
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
files >/before
rm -f /var/lib/man-db/auto-update # an index of all pages takes seconds
dpkg() { command dpkg --force-unsafe-io "$@"; }

step install
dpkg -i "$1"
step users
id relay
id relay-admin
stat -c '%a %U:%G %n' /etc/relay/ssl /etc/relay/relay.toml
# After a removal, dpkg makes the directory anew, and says which version was there.
step again
chgrp root /etc/relay/ssl
/var/lib/dpkg/info/mtls-relay.postinst configure 0.1
stat -c '%a %U:%G %n' /etc/relay/ssl
step version
as_relay relay --version
step check-before
as_relay relay check || echo "exit code $?"
step check
cd /etc/relay/ssl
issue() {
    openssl req -x509 -CA clients-ca.pem -CAkey /ca.key -days 9 -noenc -newkey ec \
        -pkeyopt ec_paramgen_curve:P-256 -subj /CN=localhost -extensions usr_cert \
        -addext "subjectAltName=DNS:localhost" -addext "extendedKeyUsage=$2" \
        -keyout "$1" -out /one.pem
    cat /one.pem >>"$1"
    chmod 640 "$1"
    chgrp relay "$1"
}
{
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 9 -subj "/CN=CA" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout /ca.key -out clients-ca.pem
    cp clients-ca.pem backends-ca.pem
    issue server.pem serverAuth
    issue machine.pem clientAuth
} 2>/openssl.log
cd /
sed -i -e 's/0.0.0.0:8443/127.0.0.1:0/' -e 's/app1.internal.example.com/localhost/' \
    -e '1i admin.listen = ""' /etc/relay/relay.toml
as_relay relay check
step unit
! command -v systemd-analyze >/dev/null || systemd-analyze verify \
    /usr/lib/systemd/system/relay.service 2>&1 | grep relay || echo "nothing about relay"
grep -E '^(Exec(Start|Reload|Paths)|Documentation)=' /usr/lib/systemd/system/relay.service
step completion
bash -c '. /usr/share/bash-completion/completions/relay
    COMP_WORDS=(relay exam) COMP_CWORD=1; _relay_completion relay; echo "${COMPREPLY[*]}"'
step links
find -L /usr/share/doc/mtls-relay /usr/bin/relay -type l
step rotate
rotate() { sed -n '/postrotate/,/endscript/{//!p}' /etc/logrotate.d/relay | sh; }
rotate && echo "no error"

step upgrade
# A systemd that says that the service is active.
mkdir -p /run/systemd/system
printf '#!/bin/sh\necho "systemctl $*" >>/systemctl.log\n' >/usr/local/bin/systemctl
chmod 755 /usr/local/bin/systemctl
as_relay relay start --strict 2>/start.log >/dev/null &
pid=$!
for _ in $(seq 200); do
    [ ! -e /var/lib/relay/endpoints.json ] || break
    kill -0 "$pid" || { cat /start.log; exit 1; }
    sleep 0.1
done
supervisor() { sed -n 's/.*"supervisor": {"pid": \([0-9]*\).*/\1/p' /var/lib/relay/endpoints.json; }
before=$(supervisor)
dpkg -i --force-confdef --force-confold "$2"
kill -0 "$before" && [ "$(supervisor)" = "$before" ] && echo "the same process serves"
dpkg-query -W mtls-relay
ls /etc/relay
grep -c 127.0.0.1:0 /etc/relay/relay.toml
grep -o 'upgraded from relay.*' /start.log || cat /start.log
rotate
relay stop
wait "$pid"
cat /systemctl.log
rm /systemctl.log

step remove
echo line >/var/log/relay/access.log
dpkg -r mtls-relay
cat /systemctl.log
ls /etc/relay /var/log/relay
test ! -e /usr/lib/mtls-relay
step purge
rm /etc/relay/relay.toml.dpkg-dist # made by the change in this test's next version
dpkg -P mtls-relay
step left
files | comm -13 /before -
step end
