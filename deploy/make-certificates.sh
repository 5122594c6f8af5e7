#!/usr/bin/env bash
# Makes a CA, a certificate for the broker, and one for everybody who connects to it.
#
#   make-certificates.sh DIR broker HOST...    HOST: each name and address of the broker
#   make-certificates.sh DIR client NAME...    NAME: a party of the cluster file, an admin, an operator
#   make-certificates.sh DIR request NAME...   at NAME: a key that stays there, and NAME.csr for the CA
#   make-certificates.sh DIR sign NAME.csr...  at the CA: NAME.crt, for a key that nobody mailed
#
# The first call that needs one makes the CA. The script never overwrites a file: to renew a certificate, move both of
# its files away and run the script again. The CA stays, so everybody goes on trusting the new one.
# Certificates are valid for CERTIFICATE_DAYS (398), the CA for CA_DAYS (3650).
# Needs openssl 1.1.1 or later. ca.key stays where this ran, offline; nobody else needs it.
#
# These certificates protect the connection to the broker, and nothing else. A party proves to the
# others who it is with its own key (`redislink keygen`), which neither broker nor CA ever sees.
set -euo pipefail
umask 077

usage() {
  sed -n '4,7s/^# *//p' "$0" >&2
  exit 2
}

[ "$#" -ge 3 ] || usage
directory=$1 kind=$2
shift 2
case $kind in broker | client | request | sign) ;; *) usage ;; esac
command -v openssl >/dev/null || { echo "openssl is not installed: install it" >&2; exit 1; }

if [ "$kind" = sign ]; then
  requests=()
  for file in "$@"; do
    [ -f "$file" ] || { echo "$file: there is no such request" >&2; exit 1; }
    requests+=("$(realpath "$file")")
  done
  set -- "${requests[@]}"
fi
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
describe() {
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
}

# name: a key, and a request for it
make_request() {
  new_key "$work/$1.key"
  openssl req -new -sha256 -config "$work/$1.cnf" -key "$work/$1.key" -out "$work/$1.csr"
}

# name: signs its request. Of a request only the key counts: names and uses are ours.
sign_request() {
  openssl req -in "$work/$1.csr" -noout -verify >/dev/null 2>&1 \
    || { echo "$1.csr: is no request, or not signed with its own key" >&2; exit 1; }
  openssl req -in "$work/$1.csr" -noout -pubkey -out "$work/$1.pub"
  openssl req -new -sha256 -config "$work/$1.cnf" -key ca.key -out "$work/$1.shell"
  openssl x509 -req -sha256 -in "$work/$1.shell" -force_pubkey "$work/$1.pub" -CA ca.crt -CAkey ca.key \
    -set_serial "0x$(openssl rand -hex 16)" -days "${CERTIFICATE_DAYS:-398}" \
    -extfile "$work/$1.cnf" -extensions extensions -out "$work/$1.crt" 2>/dev/null
  openssl verify -CAfile ca.crt "$work/$1.crt" >/dev/null
  chmod 644 "$work/$1.crt"
}

# name, what it may be used as, subject alternative names
make_certificate() {
  must_be_new "$1.key" "$1.crt"
  describe "$@"
  make_request "$1"
  sign_request "$1"
  mv -n "$work/$1.key" "$work/$1.crt" .
  echo "made $directory/$1.crt and $1.key"
}

# a command that prints a public key, and its words
digest_of() {
  "$@" | openssl dgst -sha256 -r | cut -c 1-64
}

check_client() {
  [ "$1" != ca ] && [ "$1" != broker ] || { echo "$1: is the name of another file here: take another" >&2; exit 2; }
}

if [ "$kind" = sign ]; then
  for file in "$@"; do
    name=$(basename "$file" .csr)
    check_name "$name"
    check_client "$name"
    make_ca
    must_be_new "$name.crt"
    describe "$name" clientAuth "DNS:$name"
    cp "$file" "$work/$name.csr"
    sign_request "$name"
    mv -n "$work/$name.crt" .
    echo "made $directory/$name.crt: send it and ca.crt to $name; its key is $(digest_of openssl x509 -in "$name.crt" -noout -pubkey)"
  done
  exit
fi
for name in "$@"; do
  check_name "$name"
done
if [ "$kind" = request ]; then
  for name in "$@"; do
    must_be_new "$name.key" "$name.csr"
    describe "$name" clientAuth "DNS:$name"
    make_request "$name"
    mv -n "$work/$name.key" "$work/$name.csr" .
    echo "made $directory/$name.csr (send it to whoever has the CA) and $name.key (keep it here); the key is $(digest_of openssl pkey -in "$name.key" -pubout)"
  done
  exit
fi
make_ca
if [ "$kind" = client ]; then
  for name in "$@"; do
    check_client "$name"
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
