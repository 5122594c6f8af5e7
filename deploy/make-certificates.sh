#!/usr/bin/env bash
# Makes a CA, a certificate for the broker, and one for everybody who connects to it.
#
#   make-certificates.sh DIR broker HOST...    HOST: each name and address of the broker
#   make-certificates.sh DIR client NAME...    NAME: a party of the cluster file, an admin, an operator
#
# The first call makes the CA. The script never overwrites a file: to renew a certificate, move both of
# its files away and run the script again. The CA stays, so everybody goes on trusting the new one.
# Certificates are valid for CERTIFICATE_DAYS (398), the CA for CA_DAYS (3650).
# Needs openssl 1.1.1 or later. ca.key stays where this ran, offline; nobody else needs it.
#
# These certificates protect the connection to the broker, and nothing else. A party proves to the
# others who it is with its own key (`redislink keygen`), which neither broker nor CA ever sees.
set -euo pipefail
umask 077

usage() {
  sed -n '4,5s/^# *//p' "$0" >&2
  exit 2
}

[ "$#" -ge 3 ] || usage
directory=$1 kind=$2
shift 2
case $kind in broker | client) ;; *) usage ;; esac
command -v openssl >/dev/null || { echo "openssl is not installed: install it" >&2; exit 1; }

mkdir -p "$directory"
cd "$directory"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Refuses names that mean something to openssl's configuration, or to a path.
check_name() {
  [[ $1 =~ ^[A-Za-z0-9_.:-]{1,253}$ && $1 != -* && $1 != .* ]] \
    || { echo "$1: is no name: letters, digits and _ . - only" >&2; exit 2; }
}

must_be_new() {
  local path
  for path in "$@"; do
    [ ! -e "$path" ] || { echo "$directory/$path: is there already, and stays: move it away first" >&2; exit 1; }
  done
}

new_key() {
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null
}

make_ca() {
  if [ -e ca.key ] && [ -e ca.crt ]; then
    return
  fi
  must_be_new ca.key ca.crt
  cat >"$work/ca.cnf" <<'CONFIG'
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = redislink broker CA
[extensions]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
CONFIG
  new_key "$work/ca.key"
  openssl req -new -x509 -sha256 -config "$work/ca.cnf" -key "$work/ca.key" \
    -days "${CA_DAYS:-3650}" -out "$work/ca.crt"
  chmod 644 "$work/ca.crt"
  mv -n "$work/ca.key" "$work/ca.crt" .
  echo "made $directory/ca.crt (give it to everybody) and ca.key (keep it here)"
}

# name, what it may be used as, subject alternative names
make_certificate() {
  must_be_new "$1.key" "$1.crt"
  cat >"$work/$1.cnf" <<CONFIG
[req]
prompt = no
distinguished_name = name
[name]
CN = ${1:0:64}
[extensions]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = $2
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $3
CONFIG
  new_key "$work/$1.key"
  openssl req -new -sha256 -config "$work/$1.cnf" -key "$work/$1.key" -out "$work/$1.csr"
  openssl x509 -req -sha256 -in "$work/$1.csr" -CA ca.crt -CAkey ca.key \
    -set_serial "0x$(openssl rand -hex 16)" -days "${CERTIFICATE_DAYS:-398}" \
    -extfile "$work/$1.cnf" -extensions extensions -out "$work/$1.crt" 2>/dev/null
  openssl verify -CAfile ca.crt "$work/$1.crt" >/dev/null
  chmod 644 "$work/$1.crt"
  mv -n "$work/$1.key" "$work/$1.crt" .
  echo "made $directory/$1.crt and $1.key"
}

for name in "$@"; do
  check_name "$name"
done
make_ca
if [ "$kind" = client ]; then
  for name in "$@"; do
    [ "$name" != ca ] && [ "$name" != broker ] || { echo "$name: is the name of another file here: take another" >&2; exit 2; }
    make_certificate "$name" clientAuth "DNS:$name"
  done
else
  names=
  for host in "$@"; do
    if [[ $host =~ ^[0-9.]+$ || $host == *:* ]]; then kind=IP; else kind=DNS; fi
    names+="${names:+, }$kind:$host"
  done
  # A client too: its own health check, which asks it with this certificate.
  make_certificate broker "serverAuth, clientAuth" "$names"
fi
