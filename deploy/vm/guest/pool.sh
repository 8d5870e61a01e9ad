# For the scripts that run inside the test machine: a pool of three nodes on one disk, a database, and
# the record that outlives the machine. To be sourced; TOP is the tree on the host.
GABION=${GABION:-$TOP/bin/gabion}
POOL=/pool
PGBIN=$(echo /usr/lib/postgresql/*/bin)

phase() {
	echo "$*" >>/out/phase
	echo "at $SECONDS s: $*"
}
fail() {
	echo "FAILED: $*"
	for i in 1 2 3; do
		echo "--- end of n$i.log"
		tail -n 40 $POOL/n$i.log 2>/dev/null
	done
	exit 1
}

# mount_pool DISK: the bricks' file system, made when there is none
mount_pool() {
	mkdir -p $POOL
	blkid "$1" >/dev/null || mkfs.ext4 -q "$1"
	mount "$1" $POOL
}

nbd_port() { echo $((10808 + $1)); }
iscsi_port() { echo $((3259 + $1)); }
g() { "$GABION" --dir $POOL/n1 "$@"; }

# start_node I [ARG...]: in the background
start_node() {
	local i=$1
	shift
	rm -f $POOL/n$i/run.json
	"$GABION" node run --dir $POOL/n$i --name n$i --listen 127.0.0.1:740$i --nbd 127.0.0.1:"$(nbd_port $i)" --iscsi 127.0.0.1:"$(iscsi_port $i)" \
		--http 127.0.0.1:748$i "$@" >>$POOL/n$i.log 2>&1 &
	pids[i]=$!
}

# until_true SECONDS WHAT COMMAND...: polls; the machine is slow, a failure is one of the pool
until_true() {
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || fail "not in time: $what"
		sleep 0.2
	done
}
ready() { kill -0 "${pids[$1]}" && [ -s $POOL/n$1/run.json ]; }
all_alive() { g status --json | jq -e '[.nodes[] | select(.state == "alive")] | length == 3'; }
redundant() { g status --json | jq -e --arg v "$1" '.volumes[] | select(.name == $v) | .health == "ok"'; }

# make_pool: three nodes, the last two join the first; start_pool: the same three again, all at once
make_pool() {
	start_node 1
	until_true 60 "first node" ready 1
	local token
	token=$(g pool token) || fail "no token"
	for i in 2 3; do
		start_node $i --join 127.0.0.1:7401 --token "$token"
		until_true 60 "node $i" ready $i
	done
	until_true 60 "all nodes alive" all_alive
}
start_pool() {
	for i in 2 3 1; do start_node $i; done
	for i in 1 2 3; do until_true 90 "node $i" ready $i; done
	until_true 60 "all nodes alive" all_alive
}
# stop_pool [NODE...]: in order; all three, or those that are left
stop_pool() {
	local i all=${*:-1 2 3}
	for i in $all; do kill -TERM "${pids[$i]}"; done
	for i in $all; do wait "${pids[$i]}" || fail "node $i ended with $?"; done
}

# attach NODE VOLUME DEVICE / detach DEVICE: with the kernel's client
attach() {
	until_true 30 "attach $2" nbd-client 127.0.0.1 "$(nbd_port "$1")" "$3" -N "$2" -b 4096
}
detach() { nbd-client -d "$1"; }

as_postgres() { (cd / && PGHOST=/tmp PGUSER=postgres PGDATABASE=postgres LC_ALL=C runuser -u postgres -- "$@"); }
# pg_init DIR: DIR/data is what initdb has made on the host
pg_init() {
	tar -C "$1" -xpf "$TOP/.cache/vm/pgdata.tar"
	sync -f "$1"
}
pg_start() {
	as_postgres "$PGBIN/pg_ctl" -D "$1/data" -w -t 120 -l /tmp/postgres.log -o "-k /tmp \
-c listen_addresses='' -c shared_buffers=16MB -c max_wal_size=64MB -c checkpoint_timeout=30s" start >/dev/null || {
		cat /tmp/postgres.log
		fail "postgres does not start"
	}
}
pg_stop() { as_postgres "$PGBIN/pg_ctl" -D "$1/data" -w -t 120 -m fast stop >/dev/null; }
sql() { as_postgres "$PGBIN/psql" -qAtX -v ON_ERROR_STOP=1 "$@"; }
