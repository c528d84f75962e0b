#!/bin/sh
# The rules of the house that a script can check (`make layers`): includes go down the layers only,
# and files, headers and functions stay small.
#   base <- ir <- codegen;  base + ir/abi.h <- runtime;  compiler sees all;  tests above all
set -eu
cd "$(dirname "$0")/.."

includes() {
    find ir codegen runtime compiler -name '*.[ch]' -o -name '*.def' | sort | xargs awk '
    function layer_of(path) {
        if (path ~ /^ir\/base\//) return "base"
        sub(/\/.*/, "", path)
        return path
    }
    # Whether code of layer `from` may include header `h` (as written).
    function allowed(from, h) {
        if (h ~ /^base\//) return 1
        if (h ~ /^(codegen|runtime|compiler|tests)\//) {
            if (from == "compiler") return h !~ /^tests\//
            return layer_of(h) == from
        }
        if (h ~ /^text\//) return from == "codegen"
        if (from == "runtime") return h == "abi.h"
        return from != "base"           # a name alone is a header of ir
    }
    /^#[ ]*include[ ]*"/ {
        h = $0
        sub(/^[^"]*"/, "", h); sub(/".*/, "", h)
        from = layer_of(FILENAME)
        if (!allowed(from, h)) {
            printf "%s:%d: layer %s may not include %s\n", FILENAME, FNR, from, h
            bad = 1
        }
    }
    END { exit bad }'
}

sizes() {
    find ir codegen runtime compiler -name '*.[ch]' | sort | xargs awk '
    function close_file() {
        if (!name) return
        if (lines > 800) { printf "%s: %d lines, more than 800\n", name, lines; bad = 1 }
        if (name ~ /\.h$/ && lines > 200) printf "%s: warning: a header of %d lines\n", name, lines
    }
    FNR == 1 { close_file(); name = FILENAME; start = 0 }
    { lines = FNR }
    name ~ /codegen\/text\// { next }   # texts of kernels, with their own braces
    /^\{/ { start = FNR }
    /^\}/ {
        if (start && FNR - start - 1 > 100)
            printf "%s:%d: warning: a function of %d lines\n", name, start, FNR - start - 1
        start = 0
    }
    END { close_file(); exit bad }'
}

words() {
    if grep -rnE --include='*.[ch]' --include='*.def' --include='*.sh' --exclude=layers.sh \
        '\b(TODO|FIXME)\b' ir codegen runtime compiler tests; then
        echo 'unfinished work belongs in an issue, not in a comment'
        return 1
    fi
}

status=0
includes || status=1
sizes || status=1
words || status=1
exit $status
