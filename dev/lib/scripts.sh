# shellcheck shell=bash
# Which files are scripts: those with a shell's shebang. The files that they source have none, and are checked with them.

script_shebang='^#!.*[/ ](ba)?sh( |$)'

# scripts_among: prints those of the files named on standard input, which have such a line somewhere, that begin with it.
scripts_among() {
    # shellcheck disable=SC2016  # awk's own.
    xargs -d '\n' awk -v shebang="$script_shebang" 'FNR == 1 { if ($0 ~ shebang) print FILENAME; nextfile }'
}
