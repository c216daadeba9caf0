#!/usr/bin/env python3
"""Random regular expressions and texts, with what Python's `re` says about them: cases of spec/regex_spec.lua.

    python3 scripts/regex_cases.py [SEED] [PATTERNS] > spec/fixtures/regex.jsonl

A line is {"p": pattern, "t": [texts], "f": "01..", "s": "01.."}: full match and search of each text. `^` and `$` are
given to Python as \\A and \\Z, because its `$` also matches before a last newline.
"""
import json
import random
import re
import sys

SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 5
COUNT = int(sys.argv[2]) if len(sys.argv) > 2 else 220
roll = random.Random(SEED)
ALPHABET = ["a", "b", "c", "A", "0", "7", "_", " ", "\n", "-", "é", "ß", "日", "."]


def atom(depth):
    kind = roll.randrange(14)
    if kind < 5:
        return re.escape(roll.choice(ALPHABET[:8])).replace("\\ ", " ")
    if kind == 5:
        return roll.choice(["é", "日", r"\u00e9", r"\x61", r"\n", r"\.", r"\-", r"\u65e5"])
    if kind == 6:
        return "."
    if kind == 7:
        return roll.choice([r"\d", r"\w", r"\s", r"\D", r"\W", r"\S"])
    if kind in (8, 9):
        parts = roll.sample(["a", "b-c", "A-Z", r"\d", r"\s", "_", "é", r"\-", ".", "0-7", r"\w", r"\u00df"], roll.randint(1, 3))
        return "[" + roll.choice(["", "", "^"]) + "".join(parts) + "]"
    if depth <= 0:
        return roll.choice("abc")
    return roll.choice(["(", "(?:", "(?:"]) + alternatives(depth - 1) + ")"


def piece(depth):
    if depth > 0 and roll.random() < 0.06:
        return roll.choice(["(?=", "(?!"]) + alternatives(depth - 1) + ")"
    if roll.random() < 0.05:
        return roll.choice(["^", "$"])
    quantifier = ""
    if roll.random() < 0.4:
        low = roll.randint(0, 3)
        quantifier = roll.choice(["*", "+", "?", "{%d}" % low, "{%d,}" % low, "{%d,%d}" % (low, low + roll.randint(0, 3))])
        if roll.random() < 0.2:
            quantifier += "?"
    return atom(depth) + quantifier


def sequence(depth):
    return "".join(piece(depth) for _ in range(roll.randint(0 if roll.random() < 0.1 else 1, 4)))


def alternatives(depth):
    return "|".join(sequence(depth) for _ in range(1 if roll.random() < 0.6 else roll.randint(2, 3)))


def for_python(pattern):
    out, at, in_class = [], 0, False
    while at < len(pattern):
        c = pattern[at]
        if c == "\\":
            out.append(pattern[at:at + 2])
            at += 2
            continue
        in_class = c == "[" or (in_class and c != "]")
        out.append({"^": r"\A", "$": r"\Z"}.get(c, c) if not in_class else c)
        at += 1
    return "".join(out)




def main():
    made = 0
    while made < COUNT:
        pattern = alternatives(2)
        try:
            compiled = re.compile(for_python(pattern), re.ASCII)
        except re.error:
            continue
        texts = {""}
        while len(texts) < 8:
            texts.add("".join(roll.choice(ALPHABET[:6] if roll.random() < 0.7 else ALPHABET) for _ in range(roll.randint(0, 6))))
        texts = sorted(texts)
        full = "".join("01"[compiled.fullmatch(t) is not None] for t in texts)
        search = "".join("01"[compiled.search(t) is not None] for t in texts)
        if "1" not in full + search or ("1" not in full and roll.random() < 0.5):
            continue
        print(json.dumps({"p": pattern, "t": texts, "f": full, "s": search}, ensure_ascii=False))
        made += 1


main()
