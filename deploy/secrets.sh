#!/bin/sh
# Passwords of deploy/compose.yaml, made once, into a folder that is its owner's alone: deploy/secrets.sh [FOLDER]
# Redis gets the hash of its password (an ACL file), Baton the password. What is there already is kept.
set -eu
folder="${1:-$(dirname "$0")/secrets}"
umask 077
mkdir -p "$folder"
chmod 700 "$folder"
for name in redis-state redis-cache grafana; do
  file="$folder/$name.password"
  [ -s "$file" ] || head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$file"
done
for name in redis-state redis-cache; do
  rm -f "$folder/$name.acl"
  hash="$(tr -d '\n' < "$folder/$name.password" | sha256sum | cut -c1-64)"
  {
    echo "user default on #$hash ~* &* +@all"
    echo "user health on nopass resetkeys resetchannels -@all +ping"    # for the container's health check
  } > "$folder/$name.acl"
done
chmod 444 "$folder"/*
echo "passwords are in $folder"
