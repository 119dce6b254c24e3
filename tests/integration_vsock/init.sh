#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The first process of the machine that vsock_test.py boots: kvmid, a hypervisor and agents, which find each other over
# vsock alone. Says what it does on the console and switches the machine off; the last line is the verdict.

export PATH=/bin
CID=1             # VMADDR_CID_LOCAL: everybody here is that peer
HYPERVISORS=7001  # kvmid's ports
AGENTS=7002
TOOL=7010         # of an older dialect: kvmid dials it
DENIED='skip: the page is protected'  # as kvmi-guard tells it
GUEST=6a1f7e36-51c4-4d0b-9a2e-3f0000000001

step() { echo "KVMID-VSOCK step $*"; }

verdict() {
  echo "KVMID-VSOCK $*"
  sync
  poweroff -f
  sleep 60
}

fail() {
  for log in /run/*.log; do
    echo "--- $log"
    tail -n 40 "$log"
  done
  verdict "failed: $*"
}

now() { sed 's/\..*//' /proc/uptime; }

# wait_for SECONDS WHAT COMMAND...: looks until the command succeeds.
wait_for() {
  until=$(($(now) + $1))
  what=$2
  shift 2
  until "$@" >/run/last 2>&1; do
    if [ "$(now)" -ge $until ]; then
      echo "--- the last answer"
      cat /run/last
      fail "$what"
    fi
    usleep 200000
  done
}

lines_of() { grep -c "$1" "$2" 2>/dev/null; }
# At least so many lines of the file have the text.
has_lines() { [ "$(lines_of "$2" "$3")" -ge "$1" ]; }
ctl() { kvmictl --admin-socket /run/admin.sock --agent-socket "$CID:$AGENTS" "$@"; }
online() { ctl guest web1 | grep -q '^state *online'; }
waits() { ctl guest web1 | grep -q '^ *0 *waiting *page_fault'; }
runs() { ctl guest web1 | grep -q '^ *0 *running'; }
old_waits() { ctl guest old1 | grep -q '^ *0 *waiting'; }
old_runs() { ctl guest old1 | grep -q '^ *0 *running'; }
# How often the guest's first vCPU went round its loop: in its memory, read over vsock.
rounds() { ctl mem read web1 0x10018 --int u64 | sed 's/.* //'; }
goes_on() { [ "$(rounds)" -gt "$1" ]; }
no_agents() { ctl guest web1 | grep -q '^agents *-\?$'; }

mkdir -p /proc /sys /dev /run /tmp
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
# Unicorn reserves a GiB for translated code, of which it uses little.
echo 1 >/proc/sys/vm/overcommit_memory
for module in $(cat /modules/order); do
  insmod "/modules/$module.ko" || fail "insmod $module"
done
[ -e /dev/vsock ] || fail "the kernel has no vsock"
echo  # behind what the firmware left on the line
step "booted $(uname -r)"

kvmid --config /etc/kvmid.json 2>/run/kvmid.log &
kvmid=$!
wait_for 60 "kvmid does not come up" test -S /run/admin.sock
step "kvmid listens"

kvmi-emu --vsock "$CID:$HYPERVISORS" --name web1 --uuid "$GUEST" 2>/run/emu.log &
emu=$!
wait_for 60 "kvmid does not know the guest" online
# Over vsock there is no descriptor of guest RAM: this number came by messages.
wait_for 60 "the guest's memory cannot be read" goes_on 2
step "guest online"

# Only the CID is in the policy: root on the unix socket is nobody.
kvmictl --agent-socket /run/agent.sock mem read web1 0x10018 --int u64 >/run/unix.log 2>&1
[ $? -eq 5 ] || fail "the policy let the unix socket's peer in"
step "policy goes by cid"

kvmi-trace --socket "$CID:$AGENTS" --guest web1 --kinds cr,msr,breakpoint --outcomes >/run/trace.log 2>&1 &
trace=$!
kvmi-guard --socket "$CID:$AGENTS" --guest web1 --protect 0x20000 --stall-after 5 >/run/guard.log 2>&1 &
guard=$!
wait_for 60 "the observer gets no events" has_lines 10 ' cr ' /run/trace.log
wait_for 60 "the observer is told of no outcomes" has_lines 5 decided: /run/trace.log
step "observer has events"
wait_for 60 "the guard decides nothing" has_lines 5 "$DENIED" /run/guard.log
step "guard has denied $(lines_of "$DENIED" /run/guard.log)"

# It answers no more, and has a minute to do so: only its end lets the vCPU go on sooner.
wait_for 60 "the guest does not wait for the guard" waits
before=$(rounds)
sleep 1
[ "$(rounds)" = "$before" ] || fail "the guest ran on while the guard owed an answer"
kill -KILL $guard
wait $guard
wait_for 20 "the guest still waits for a guard that was killed" runs
wait_for 60 "the guest does not go on behind the killed guard" goes_on $((before + 3))
step "guard killed, guest goes on"

kill -KILL $trace
wait $trace
wait_for 60 "a killed agent is still attached" no_agents
seen=$(rounds)
wait_for 60 "the guest does not go on without agents" goes_on "$seen"
step "all agents killed, guest goes on"

# The hypervisor finds a kvmid that was killed and started again.
kill -KILL $kvmid
wait $kvmid
rm -f /run/admin.sock
kvmid --config /etc/kvmid.json 2>/run/kvmid2.log &
kvmid=$!
wait_for 60 "kvmid does not come up again" test -S /run/admin.sock
wait_for 60 "the guest does not come back to a new kvmid" online
seen=$(rounds)
wait_for 60 "the guest does not go on under a new kvmid" goes_on "$seen"
step "kvmid killed, guest is back"

# Older dialects on both sides: kvmid is dialled by one, and dials the other.
dialect-tool --listen vsock:$TOOL --dialect v7 >/run/tool.log 2>&1 &
tool=$!
kvmi-emu --vsock "$CID:$HYPERVISORS" --name old1 --dialect v12 2>/run/old.log &
old=$!
wait_for 60 "no guest of v12" grep -q '^ready' /run/tool.log
wait_for 60 "the tool gets no event" has_lines 1 '^event ' /run/tool.log
wait_for 60 "the guest of v12 does not wait for the tool" old_waits
step "a tool of v7 holds a guest of v12"
kill -KILL $tool
wait $tool
wait_for 60 "the guest of v12 still waits for a tool that was killed" old_runs
kill -TERM $old
wait $old || fail "kvmi-emu of v12 ended with $?"
step "the tool killed, its guest goes on"

# A hypervisor from another CID than the listed one is turned away.
sed 's/"hypervisors": { "cid": \[1\] }/"hypervisors": { "cid": [3] }/' /etc/kvmid.json >/etc/other.json
cp /etc/other.json /etc/kvmid.json
ctl reload >/run/reload.log 2>&1 || fail "kvmid does not read its configuration again"
kvmi-emu --vsock "$CID:$HYPERVISORS" --name stranger --exit-after-ms 60000 2>/run/stranger.log &
wait_for 60 "a hypervisor whose CID is not listed is not refused" grep -q 'kvmid refused the guest: EPERM' /run/stranger.log
online || fail "the guest that was there is gone"
step "hypervisors go by cid"

kill -TERM $kvmid
wait $kvmid || fail "kvmid ended with $?"
kill -TERM $emu
wait $emu || fail "kvmi-emu ended with $?"
verdict "ok events=$(lines_of ' cr \| msr \| breakpoint ' /run/trace.log) denied=$(lines_of "$DENIED" /run/guard.log)"
