# shellcheck shell=sh
# Read by every stub: where its Mac is, a line in the record of calls, and the power cut that a test may ask for.
mac=${0%/usr/sbin/*}
mac=${mac%/usr/bin/*}
mac=${mac%/bin/*}
state=$mac/state
call="${0##*/} $*"
printf '%s\n' "${call%%
*}" >>"$state/calls" # a script after -c has many lines
if [ -e "$state/kill-at" ] && [ "$(wc -l <"$state/calls")" -ge "$(cat "$state/kill-at")" ]; then
    rm "$state/kill-at"
    kill -9 "-$(cat "$state/group")"
fi
is_root() { [ "${MAC_ROOT:-}" = yes ]; }
has_fault() { [ -e "$state/faults/$1" ]; }
