#!/usr/bin/env bash
# What is written below --writable is there afterwards, nothing else is.
source "$(dirname "$0")/common.sh"

mkdir "$folder/kept, with a comma" "$folder/kept, with a comma/below" "$folder/other"
cd "$folder" || exit 1
echo before > 'kept, with a comma/old'
vm 0 --writable 'kept, with a comma/below' --writable 'kept, with a comma' --writable new/place -- bash -c '
  set -e
  echo after >> "kept, with a comma/old"
  head -c 3000000 /dev/zero > "kept, with a comma/below/large"
  mkdir new/place/folder
  echo content > new/place/folder/file
  mv new/place/folder/file new/place/renamed
  python3 -c "
import mmap
with open(\"new/place/mapped\", \"wb+\") as file:
    file.truncate(8192)
    with mmap.mmap(file.fileno(), 8192) as memory:
        memory[5000:5003] = b\"abc\"
"
  echo lost > other/lost
  echo lost >> "'"$here"'/common.sh"
  rm "'"$here"'/report.sh"
'
expect 'appended text' [ "$(cat 'kept, with a comma/old')" = $'before\nafter' ]
expect 'file in the inner folder' [ "$(stat -c %s 'kept, with a comma/below/large')" = 3000000 ]
expect 'renamed file' [ "$(cat new/place/renamed)" = content ]
expect 'mapped file' [ "$(tail -c +5001 new/place/mapped | head -c 3)" = abc ]
expect 'a write elsewhere was kept' [ ! -e other/lost ]
expect 'this very tree was changed' [ -e "$here/report.sh" ]
expect 'this very file was changed' [ "$(tail -n 1 "$here/common.sh")" = '}' ]
exit $bad
