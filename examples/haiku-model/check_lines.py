"""Check the syllable counts of a haiku line bank against the CMU dictionary (Debian: festlex-cmu).

usage: check_lines.py lines/THEME.txt
Prints each line whose count cannot be the one its section asks for, and each section's size.
"""

import collections
import re
import sys

from syllables import counts

SLOTS = {"n1": 1, "n2": 2, "n3": 3, "n4": 4}


def complaint(line, section, seen):
    """What is wrong with a line of verse, or None."""
    slot = next((n for name, n in SLOTS.items() if name in section), 0)
    if slot and line.count("{n}") != 1:
        return "needs exactly one {n}"
    if line.lower() in seen:
        return "repeated"
    wanted = int(re.search(r"[57]", section).group())
    totals = {slot + n for n in counts(line.replace("{n}", ""))}
    if wanted not in totals:
        return f"want {wanted}, counted {sorted(totals)}"
    return None


def main(path):
    n_bad, sizes, seen, section = 0, collections.Counter(), set(), None
    with open(path, encoding="utf-8") as rows:
        for number, row in enumerate(map(str.strip, rows), 1):
            header = re.match(r"\[(.+)\]$", row)
            if header:
                section = header.group(1)
            if header or not row or row.startswith("#") or section in (None, "topics"):
                continue
            sizes[section] += 1
            wrong = complaint(row, section, seen)
            if wrong:
                print(f"{number}: {wrong}: {row}")
                n_bad += 1
            seen.add(row.lower())
    print(dict(sizes))
    print("bad lines:", n_bad)


if __name__ == "__main__":
    main(*sys.argv[1:])
