#!/bin/sh
# Prints the Python to set up with: the first that is new enough and can make an environment,
# else the first that is new enough, else python3 (whose shortcomings tools/preflight.py names).
new=''
for name in python3 python3.14 python3.13 python3.12 python3.11; do
    # Run it rather than look for it: a version manager's stand-in exists and yet may not work.
    "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
    [ -n "$new" ] || new=$name
    if "$name" -c 'import venv, ensurepip' >/dev/null 2>&1; then
        echo "$name"
        exit 0
    fi
done
echo "${new:-python3}"
