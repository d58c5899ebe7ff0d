#!/usr/bin/env bash
# The main job, in front of your eyes: a StatefulSet on a three-node lab, from nothing. Every step is proved; the first
# one that does not hold ends the demo with an error. KEEP=1 leaves the lab running afterwards.
#
# Needs root. `make demo` builds what it needs and calls it.
set -euo pipefail
cd "$(dirname "$0")/.."

BERTH=${BERTH_BIN:?name the berth binary in BERTH_BIN, or run: make demo}
KEEP=${KEEP:-0}
WATCH_LOG=$(mktemp)
WATCH_PID=

if [ -t 1 ]; then BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' OFF=$'\e[0m'; else BOLD='' DIM='' GREEN='' RED='' OFF=''; fi

berth() { "$BERTH" "$@"; }
step()  { printf '\n%s== %s%s\n' "$BOLD" "$*" "$OFF"; }
show()  { printf '%s$ %s%s\n' "$DIM" "$*" "$OFF"; "$@"; }
holds() { printf '%s  ok: %s%s\n' "$GREEN" "$*" "$OFF"; }
fails() { printf '%s  does not hold: %s%s\n' "$RED" "$*" "$OFF" >&2; exit 1; }

finish() {
  local code=$?
  [ -z "$WATCH_PID" ] || kill "$WATCH_PID" 2>/dev/null || true
  rm -f "$WATCH_LOG"
  if [ "$KEEP" = 1 ]; then
    printf '\nThe lab is left running. Look around:  %s get pods -o wide\nTake it down with:  %s lab down\n' "$BERTH" "$BERTH"
  else
    step "Take everything down again"
    berth lab down || code=1
  fi
  if [ "$code" = 0 ]; then printf '\n%sEverything held.%s\n' "$GREEN" "$OFF"; else printf '\n%sThe demo failed.%s\n' "$RED" "$OFF"; fi
  exit "$code"
}
trap finish EXIT

# Lets a user watch the pods; what they see goes to $WATCH_LOG.
watch_pods() { : >"$WATCH_LOG"; "$BERTH" get pods --watch >>"$WATCH_LOG" 2>&1 & WATCH_PID=$!; }
stop_watching() { kill "$WATCH_PID"; wait "$WATCH_PID" 2>/dev/null || true; WATCH_PID=; }

field() { berth get "$1" "$2" -o json | jq -r "$3"; }
# Who runs, since when: changes if any pod or container was replaced or restarted.
running() {
  berth get pods -l app=nginx -o json |
    jq -r '.items[] | [.metadata.name, .metadata.uid, .status.containerStatuses[0].containerID, .status.containerStatuses[0].restartCount] | @tsv' |
    grep -E "^web-[012][[:space:]]"
}
# expect WHAT COMMAND... : the command's output must be WHAT.
expect() {
  local want=$1 got; shift
  got=$("$@") || fails "'$*' failed"
  [ "$got" = "$want" ] || fails "'$*' says '$got', not '$want'"
}

step "A three-node lab: etcd, the services, three nodes with containerd, each in its own network namespace"
show berth lab up --nodes 3
show berth get nodes -o wide

step "The StatefulSet of the Kubernetes documentation, created in order"
watch_pods
show berth apply -f examples/web.yaml
show berth rollout status sts/web --timeout 120s
cat "$WATCH_LOG"
order=$(awk '$2 == "1/1" && $1 ~ /^web-/ && !seen[$1]++ {print $1}' "$WATCH_LOG" | tr '\n' ' ')
[ "$order" = "web-0 web-1 web-2 " ] || fails "the pods became ready in the order '$order'"
for k in 1 2; do
  awk -v me="web-$k" -v before="web-$((k - 1))" '
    $1 == before && $2 == "1/1" {ready = 1}
    $1 == me {exit !ready}' "$WATCH_LOG" || fails "web-$k was created before web-$((k - 1)) was ready"
done
stop_watching
holds "web-0, web-1, web-2: each was created when the one before it was ready"
show berth get pods,pvc -o wide

step "Stable host names"
for k in 0 1 2; do
  expect "web-$k" berth exec "web-$k" -- hostname
done
holds "each pod is called by its own name"

step "Stable DNS names, across nodes"
nodes=$(berth get pods -l app=nginx -o json | jq -r '.items[].spec.nodeName' | sort -u | wc -l)
[ "$nodes" = 3 ] || fails "the pods are spread over $nodes node(s), not 3"
for k in 0 1 2; do
  berth exec "web-$k" -- sh -c "echo 'written by web-$k' > /usr/share/nginx/html/index.html"
done
show berth exec web-0 -- nslookup web-2.nginx.default.svc.cluster.local
for from in 0 1 2; do
  for to in 0 1 2; do
    expect "written by web-$to" berth exec "web-$from" -- wget -T 5 -q -O - "http://web-$to.nginx.default.svc.cluster.local/"
  done
done
holds "every pod reaches every other by its name, on another node"

step "web-1 is killed and comes back as web-1, with its data"
uid=$(field pod web-1 .metadata.uid)
claim=$(field pvc www-web-1 .metadata.uid)
show berth delete pod web-1
show berth rollout status sts/web --timeout 120s
[ "$(field pod web-1 .metadata.uid)" != "$uid" ] || fails "web-1 is still the same pod"
[ "$(field pvc www-web-1 .metadata.uid)" = "$claim" ] || fails "web-1 has another claim"
expect web-1 berth exec web-1 -- hostname
expect "written by web-1" berth exec web-0 -- wget -T 5 -q -O - http://web-1.nginx/
holds "a new pod, the same name, the same claim, the same data"

step "Scale down to 1: web-2 goes, then web-1; the claims stay"
watch_pods
show berth scale sts web --replicas 1
show berth wait pod/web-1 --for deleted --timeout 60s
stop_watching
awk '$3 == "Terminating"' "$WATCH_LOG"
order=$(awk '$3 == "Terminating" && !seen[$1]++ {print $1}' "$WATCH_LOG" | tr '\n' ' ')
[ "$order" = "web-2 web-1 " ] || fails "the pods went in the order '$order'"
expect "persistentvolumeclaim/www-web-0
persistentvolumeclaim/www-web-1
persistentvolumeclaim/www-web-2" berth get pvc -o name
holds "from the highest down, one at a time, and nothing of the data is gone"

step "Scale up to 3: the data is there again"
show berth scale sts web --replicas 3
show berth rollout status sts/web --timeout 120s
for k in 0 1 2; do
  expect "written by web-$k" berth exec web-0 -- wget -T 5 -q -O - "http://web-$k.nginx/"
done
holds "each name found its own volume"

step "Kill every service, one after the other: no pod is disturbed, and the work goes on"
before=$(running)
replicas=3
for role in scheduler controller volumes api etcd; do
  replicas=$((7 - replicas)) # 4, 3, 4, 3, 4
  printf '%s$ kill -9 %s; berth scale sts web --replicas %s%s\n' "$DIM" "$role" "$replicas" "$OFF"
  berth lab kill "$role" --wait
  berth scale sts web --replicas "$replicas" >/dev/null
  if [ "$replicas" = 4 ]; then
    berth rollout status sts/web --timeout 120s
  else
    berth wait pod/web-3 --for deleted --timeout 60s
  fi
  [ "$(running)" = "$before" ] || fails "killing $role disturbed the pods: $(diff <(echo "$before") <(running))"
  expect "written by web-2" berth exec web-0 -- wget -T 5 -q -O - http://web-2.nginx/
  holds "$role was killed; the set was scaled to $replicas all the same; web-0 to web-2 never noticed"
done
show berth lab status
