#!/usr/bin/env bash
# Runs on the login node of scripts/slurm-test.sh: srun over two nodes (TCP between them, shared memory inside) trains to
# the very bits that mpirun on one host does.   digest-test.sh DTR_TRAIN
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"
run() { # run NAME LAUNCHER...
  local name=$1
  shift
  "$@" --servers 2 --max-steps 60 --seed 7 --json "$TMPDIR/$name.json" > "$TMPDIR/$name.log" 2>&1 || {
    cat "$TMPDIR/$name.log"
    die "$name failed"
  }
}
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$TMPDIR/$1.json" "$2"; }

run mpirun mpirun -n 4 "$1"
run srun srun -N2 --ntasks-per-node=2 "$1"
echo "mpirun: $(field mpirun transport) $(field mpirun parameter_digest)"
echo "srun:   $(field srun transport) $(field srun parameter_digest)"
[ "$(field mpirun steps)" = 60 ] && [ "$(field srun steps)" = 60 ] || die 'not all steps were made'
[ "$(field srun transport)" = tcp ] || die 'workers on one node and servers on the other: expected tcp'
[ "$(field mpirun parameter_digest)" = "$(field srun parameter_digest)" ] || die 'the digests differ'
