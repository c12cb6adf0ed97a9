#!/bin/bash
# paragraphs.sh: called by documents.sh.
#
# Writes paragraphs of documents that every Debian machine has, licences first, then
# copyright files and changelogs, to stdout in COPY's text format: document, number,
# paragraph. At most 200 documents, 100 paragraphs of each, and 5,000 in all.
set -euo pipefail

{ find /usr/share/common-licenses -type f 2>/dev/null | sort
  find /usr/share/doc -name copyright -type f 2>/dev/null | sort
  find /usr/share/doc -name 'changelog*.gz' -type f 2>/dev/null | sort; } |
  awk 'NR <= 200' |
  while read -r file; do
    echo "document $file"
    case $file in
      *.gz) gzip -dc "$file" ;;
      *) cat "$file" ;;
    esac | iconv -c -f UTF-8 -t UTF-8 | tr -d '\000\r' | sed 's/\\/\\\\/g; s/\t/ /g' |
      awk 'BEGIN { RS = "" } NR <= 100 { gsub(/\n/, "\\n"); print "\t" $0 }'
  done |
  awk '/^document / { document = substr($0, 10); number = 0; next }
       total < 5000 { total++; print document "\t" ++number $0 }'
