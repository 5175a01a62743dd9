#!/bin/sh
# Certificates with which Dask's processes know one another: deploy/certificates.sh FOLDER writes ca.pem, cert.pem and key.pem.
# One certificate for all of them, signed by an authority whose key is thrown away: who has key.pem may run code on the workers.
# A folder that holds them stays as it is. Valid for two years.
set -eu
umask 077
cd "$1"
if [ -f cert.pem ]; then exit 0; fi
curve="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
openssl req -x509 $curve -days 730 -subj "/CN=normascope dask authority" -keyout authority.key -out ca.pem 2> /dev/null
openssl req $curve -subj "/CN=normascope dask" -keyout key.pem -out request.pem 2> /dev/null
openssl x509 -req -in request.pem -CA ca.pem -CAkey authority.key -CAcreateserial -days 730 -out signed.pem 2> /dev/null
rm -f authority.key request.pem ca.srl
mv signed.pem cert.pem
