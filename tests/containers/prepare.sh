#!/usr/bin/env bash
# What the container tests need and a machine may lack: compose v2 and buildx for `docker`, and the image debian:SUITE-slim (trixie, or
# the argument). Where it cannot be pulled, it is bootstrapped from the machine's own Debian mirror, with the machine's own certificate
# authorities in it.
set -euo pipefail

suite=${1:-trixie}
base=debian:$suite-slim
plugins=/usr/local/lib/docker/cli-plugins
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { # message, hint
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 3
}

# The mirror that this machine's own apt uses.
mirror() {
    local found
    found=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m 1 '/debian/$') \
        || fail "no Debian mirror in this machine's apt configuration" "install docker's compose and buildx plugins, and pull $base"
    echo "${found%/}"
}

docker info >/dev/null 2>&1 || fail "no Docker engine answers" "start it (service docker start), or add your user to the group docker"

# A package of Debian 13, unpacked into $work/unpacked; apt checks its signature.
unpack() { # name
    if [ ! -d "$work/apt" ]; then
        mkdir -p "$work"/apt/{lists,cache,etc}/partial
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) trixie main" >"$work/apt/etc/sources.list"
        options=(-qq -o Dir::Etc::sourcelist="$work/apt/etc/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::Lists="$work/apt/lists"
            -o Dir::Cache="$work/apt/cache" -o APT::Sandbox::User=root)
        apt-get "${options[@]}" update
    fi
    (cd "$work" && apt-get "${options[@]}" download "$1" && dpkg-deb -x "$1"_*.deb unpacked)
}

for plugin in compose buildx; do
    docker "$plugin" version >/dev/null 2>&1 && continue
    unpack "docker-$plugin"
    mkdir -p "$plugins"
    install -m 755 "$work/unpacked/usr/libexec/docker/cli-plugins/docker-$plugin" "$plugins/"
    docker "$plugin" version >&2
done

if ! docker image inspect "$base" >/dev/null 2>&1 && ! docker pull --quiet "$base" >/dev/null 2>&1; then
    command -v debootstrap >/dev/null || fail "$base can neither be pulled nor bootstrapped" "apt install debootstrap"
    echo "bootstrapping $base" >&2
    # By sid's script, because the machine's debootstrap may be older than the suite.
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$work/base" "$(mirror)" sid >"$work/log" 2>&1 \
        || fail "debootstrap: $(tail -n 1 "$work/log")" "it needs root, and a mirror that answers"
    cp -r /usr/local/share/ca-certificates "$work/base/usr/local/share/"
    chroot "$work/base" update-ca-certificates >/dev/null 2>&1
    rm -rf "$work"/base/var/cache/apt/* "$work"/base/var/lib/apt/lists/*
    tar -C "$work/base" -c . | docker import --change 'CMD ["bash"]' - "$base" >&2
fi
