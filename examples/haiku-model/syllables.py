"""Possible syllable counts of a line, by the CMU dictionary (Debian: festlex-cmu) with slack for unknown words."""

import collections
import re

DICTIONARY = "/usr/share/festival/dicts/cmu/cmudict-0.4.out"

# Words that the dictionary lacks or counts differently from our ear.
EXTRA = {
    1: "fire fires girl hour hours our pearl tires warp warps wire wires world",
    2: "being cruel cuda different evening every flower flowers going haiku heaven jewel kernels lion logits lua malloc "
    "mirror mirrors poem poems power quiet ruin seeing segfault several shower showers softmax tensor tensors token "
    "tokens toward towards tower towers vram",
    3: "camera cpu family gpu gpus gpus' memories memory silicon",
}
EXTRA = {word: n for n, row in EXTRA.items() for word in row.split()}

# (ending, syllables it adds), tried in order on words that are in no list.
ENDINGS = [
    ("'s", 0), ("s", 0), ("es", 1), ("ed", 0), ("ed", 1), ("ing", 1), ("ly", 1), ("er", 1), ("est", 1), ("less", 1),
    ("ness", 1),
]  # fmt: skip


def load_dictionary():
    counts_of = collections.defaultdict(set)
    with open(DICTIONARY, errors="replace") as rows:
        for row in rows:
            entry = re.match(r'\("([^"]+)" \S+ \((.*)\)\)\s*$', row)
            if entry:
                counts_of[entry.group(1)].add(len(re.findall(r"\(\(", entry.group(2))))
    return counts_of


KNOWN = load_dictionary()


def count(word):
    """The set of syllable counts that a word may have."""
    word = word.lower().strip("'")
    if word in EXTRA:
        return {EXTRA[word]}
    if word in KNOWN:
        return KNOWN[word]
    for ending, added in ENDINGS:
        if word.endswith(ending):
            stem = word[: -len(ending)]
            for base in (stem, stem + "e", stem[:-1]):
                if base in KNOWN:
                    return {n + added for n in KNOWN[base]}
    vowels = len(re.findall(r"[aeiouy]+", word))
    silent_e = 1 if re.search(r"[^aeiouyl]e$", word) else 0
    n = vowels - silent_e
    return {max(1, n - 1), max(1, n), max(1, n) + 1}


def counts(line):
    """The set of totals that the line's words allow."""
    totals = {0}
    for word in re.findall(r"[A-Za-z']+", line):
        totals = {total + n for total in totals for n in count(word)}
    return totals
