# For scripts that try a cluster on this machine, to be sourced in the root of the repository: a real
# sshd on $port, and `step`, which says how long a command took. Needs root, sshd, rsync, nc, unshare,
# and the package installed in the Python on PATH.
#
# sshd, and with it the cluster, has a process namespace, a /tmp/ray, a port and a user of its own:
# `ray up` and `ray down` call `ray stop`, which ends every Ray process that it can see. The user,
# $name, is root by another name and home, who can read this Python wherever it is.
# $work/home is the home on the cluster, $HOME the one of the laptop, with $work/key.

name=try-$$
work=$(mktemp -d /tmp/try-XXXXXX)
started=()  # process ids
end() {
  if [ ${#started[@]} != 0 ]; then
    kill -KILL "${started[@]}" || true  # sshd: with all of its namespace
    wait "${started[@]}" || true
  fi 2> /dev/null
  rm -rf "$work"
}
trap end EXIT

free_port() {
  python -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'
}
port=$(free_port) gcs_port=$(free_port)

mkdir -p "$work"/{home/.ssh,laptop/.ssh,storage,ray} /run/sshd /tmp/ray
(cat /etc/passwd; echo "$name:*:0:0::$work/home:/bin/bash") > "$work/passwd"
ssh-keygen -qt ed25519 -N '' -f "$work/key"
ssh-keygen -qt ed25519 -N '' -f "$work/host"
cp "$work/key.pub" "$work/home/.ssh/authorized_keys"
ln -s "$(python -c 'import sys; print(sys.prefix)')" "$work/home/venv"
echo '. ~/.bashrc' > "$work/home/.bash_profile"
touch "$work/home/.bashrc"
cat > "$work/sshd_config" <<END
Port $port
ListenAddress 127.0.0.1
HostKey $work/host
PasswordAuthentication no
UsePAM no
StrictModes no
AllowUsers $name
PidFile none
END
unshare --mount --fork --pid --mount-proc --kill-child bash -c \
  "mount --bind $work/passwd /etc/passwd && mount --bind $work/ray /tmp/ray && exec /usr/sbin/sshd -D -e -f $work/sshd_config" \
  2> "$work/sshd.log" &
started+=($!)

export HOME="$work/laptop" RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS RAY_AUTH_MODE
ray get-auth-token --generate > /dev/null

step() {
  local begin=$EPOCHREALTIME
  if ! "${@:2}" > "$work/log" 2>&1; then
    echo "$1 failed:"
    cat "$work/log"
    exit 1
  fi
  echo "$1: $(echo "$EPOCHREALTIME $begin" | awk '{printf "%.1f", $1 - $2}') s"
}
