#!/usr/bin/env bash
# Attack three random cells of every board that changed since a commit. Fails if one is not reproduced.
# A board whose data set is not here is named and skipped: `reproduce` then exits with status 2.
set -u
since=${1:?usage: reproduce_changed_boards.sh COMMIT}
failed=0
for board in $(git diff --name-only "$since" -- leaderboards | cut -d/ -f1,2 | sort -u); do
  [ -d "$board/artifacts" ] || continue
  echo "== $board"
  ${ROBOBENCH:-uv run robobench} reproduce "$board" --sample 3 --minutes 8
  case $? in
    0) ;;
    2) echo "::warning::$board was not attacked again; see the message above" ;;
    *) failed=1 ;;
  esac
done
exit $failed
