#!/usr/bin/env bash
# One rank of a job whose ranks are judged one by one: runs the program beside this shell and leaves, in a folder,
#   pid.RANK   its process, as soon as it runs        out.RANK, err.RANK   what it wrote
#   code.RANK  its exit code, when it has ended (the time of this file is when)
#
#   rank.sh FOLDER PROGRAM [ARGUMENT...]
folder=$1
shift
rank=$OMPI_COMM_WORLD_RANK
"$@" > "$folder/out.$rank" 2> "$folder/err.$rank" < /dev/null &
echo "$$ $!" > "$folder/draft.$rank" && mv "$folder/draft.$rank" "$folder/pid.$rank"
wait $!
code=$?
echo $code > "$folder/draft.$rank" && mv "$folder/draft.$rank" "$folder/code.$rank"
exit $code
