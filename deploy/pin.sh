#!/bin/sh
# Pins every image to the digest that its tag has now, in place, so that a tag which is moved later changes nothing:
# deploy/pin.sh [FILE ...]   (needs docker with buildx; all files of deploy/ that name images by default)
set -eu
cd "$(dirname "$0")"
[ $# -gt 0 ] || set -- Dockerfile compose.yaml kubernetes/*.yaml
for file in "$@"; do
  sed -nE 's/^ *(-? *image:|FROM) +([^ @]+:[^ @]+)( AS .*)?$/\2/p' "$file" | sort -u | while read -r image; do
    case "$image" in baton:*) continue ;; esac    # your own: pin it where you push it
    digest="$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}')"
    case "$digest" in sha256:????????????????????????????????????????????????????????????????) ;; *) echo "$image: no digest" >&2; exit 1 ;; esac
    sed -i -E "s|((image:\|FROM) +$image)( AS .*)?$|\1@$digest\3|" "$file"
    echo "$file: $image@$digest"
  done
done
