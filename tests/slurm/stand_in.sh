#!/usr/bin/env bash
# Stands in for dtr_train: counts steps in the checkpoint folder, ends at the next step after USR1. Rank 0 keeps the books.
rank=${OMPI_COMM_WORLD_RANK:-$PMIX_RANK}
while [ $# -gt 0 ]; do
  case $1 in
    --checkpoint-dir) folder=$2 && shift ;;
    --max-steps) last=$2 && shift ;;
    --die-at) die_at=$2 && shift ;;
  esac
  shift
done
stop=no
trap 'stop=yes' USR1
mkdir -p "$folder"
step=$(cat "$folder/step" 2> /dev/null || echo 0)
[ "$rank" != 0 ] || echo "start at $step" >> "$folder/history"
while [ "$step" -lt "$last" ] && [ $stop = no ]; do
  sleep 0.05
  step=$((step + 1))
  if [ "$rank" = 1 ] && [ "$step" = "${die_at:-0}" ] && [ ! -e "$folder/died" ]; then
    touch "$folder/died"
    kill -9 $$
  fi
  [ "$rank" != 0 ] || echo $step > "$folder/step"
done
[ "$rank" != 0 ] || echo "end at $step" >> "$folder/history"
