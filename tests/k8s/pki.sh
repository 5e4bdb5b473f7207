# shellcheck shell=bash
# Certificates and kubeconfigs, in the folder it is called in: $STATE/pki. Sourced after lib.sh.
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
certificate() { # NAME SUBJECT NAMES
    key "$1.key"
    openssl req -new -key "$1.key" -subj "$2" | openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" \
        -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$3") 2>/dev/null
}
kubeconfig() {
    cat >"$1.kubeconfig" <<K
apiVersion: v1
kind: Config
clusters: [{ name: it, cluster: { server: "https://$API_HOST:6443", certificate-authority: $STATE/pki/ca.crt } }]
users: [{ name: it, user: { client-certificate: $STATE/pki/$1.crt, client-key: $STATE/pki/$1.key } }]
contexts: [{ name: it, context: { cluster: it, user: it } }]
current-context: it
K
}
node_certificate() {
    certificate "node$1" "/O=system:nodes/CN=system:node:node$1" "DNS:node$1,IP:$(node_v4 "$1"),IP:$(node_v6 "$1")"; kubeconfig "node$1"
}
