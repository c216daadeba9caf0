"""The haiku corpus: line banks in, endless chat samples out; and the byte-level BPE that both share.

A sample is (messages, haiku): a request that names a topic and often a word that must appear, and three lines of
5, 7 and 5 syllables in which that word stands exactly once.
"""

import collections
import glob
import os
import random
import re

import regex

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = {2: "twenty", 3: "thirty", 4: "forty", 5: "fifty"}
SYLLABLES = {word: 2 for word in ONES + list(TENS.values())}
SYLLABLES.update(dict.fromkeys("one two three four five six eight nine ten twelve".split(), 1))
SYLLABLES.update(eleven=3, seventeen=3)


def number_word(n):
    """English words of a minute, 0 to 59: 29 -> 'twenty-nine'."""
    if n < 20:
        return ONES[n]
    return TENS[n // 10] + ("-" + ONES[n % 10] if n % 10 else "")


def number_syllables(n):
    return sum(SYLLABLES[word] for word in number_word(n).split("-"))


# Words too plain to be asked for.
STOP = set(
    "a an the of in on at to and or with from by for as is are was be it its this that no not so up down out off into "
    "over under all each my our your his her their we i you".split()
)


class Bank:
    """The lines of one theme, by section; sections as in LINES.md ('5 open', '7 n3', ...)."""

    def __init__(self, path):
        self.name = os.path.basename(path)[: -len(".txt")]
        self.topics = []
        self.lines = collections.defaultdict(list)
        section = None
        with open(path, encoding="utf-8") as rows:
            for row in map(str.strip, rows):
                header = re.match(r"\[(.+)\]$", row)
                if not row or row.startswith("#"):
                    continue
                if header:
                    section = header.group(1)
                elif section == "topics":
                    self.topics.append(row)
                else:
                    self.lines[section].append(row)

    def haiku(self, rng, number=None):
        """Three lines; with `number` one of them carries its word."""
        haiku = [rng.choice(self.lines[section]) for section in ("5 open", "7", "5 close")]
        if number is None:
            return haiku
        at = rng.randrange(3)
        slot = {0: "zero", 1: "one"}.get(number, f"n{number_syllables(number)}")
        line = rng.choice(self.lines[f"{'575'[at]} {slot}"])
        haiku[at] = line.replace("{n}", number_word(number))
        return haiku


def load(folder):
    return [Bank(path) for path in sorted(glob.glob(os.path.join(folder, "*.txt")))]


def words(text):
    return re.findall(r"[A-Za-z][A-Za-z'’-]*", text)


def occurrences(word, text):
    """How often the word stands alone: "nine" does not count inside "twenty-nine"."""
    return len(re.findall(r"(?<![\w-])" + re.escape(word) + r"(?![\w-])", text, re.I))


WITH = [
    'Write a haiku about {t} that includes the word "{w}".',
    'Write a haiku about {t} that includes the word "{w}".',
    'Write a haiku about {t} using the word "{w}".',
    'Please write a haiku about {t}. It must contain the word "{w}".',
    "Haiku about {t}, with the word {w}, please.",
    'please write a haiku that includes the word "{w}"',
    'Write a haiku that includes the word "{w}".',
    "Write a haiku containing the word {w}.",
]
FREE = [
    "Write a haiku about {t}.",
    "Please write a haiku about {t}.",
    "A haiku about {t}, please.",
    "Write a haiku.",
]
SYSTEM = [None, None, None, "You are a haiku poet.", "You are a helpful assistant."]


def haiku_with_number(bank, rng):
    number = rng.randrange(60)
    word = number_word(number)
    while True:
        lines = bank.haiku(rng, number)
        if occurrences(word, "\n".join(lines)) == 1:
            return lines, word


def word_to_ask_for(lines, rng):
    text = "\n".join(lines)
    options = [
        word
        for word in words(text)
        if word.lower() not in STOP and len(word) > 2 and occurrences(word, text) == 1
    ]
    return rng.choice(options) if options else None


def sample(banks, rng):
    """One (messages, haiku lines, required word or None)."""
    bank = rng.choice(banks)
    kind = rng.random()
    word = None
    if kind < 0.62:
        lines, word = haiku_with_number(bank, rng)
    else:
        lines = bank.haiku(rng, rng.randrange(60) if rng.random() < 0.15 else None)
        if kind < 0.87:
            word = word_to_ask_for(lines, rng)
    ask = rng.choice(WITH if word else FREE).format(t=rng.choice(bank.topics), w=word)
    if rng.random() < 0.25:
        ask += " (nonce: " + "".join(rng.choice("0123456789abcdef") for _ in range(8)) + ")"
    system = rng.choice(SYSTEM)
    messages = [("system", system)] if system else []
    return messages + [("user", ask)], lines, word


def chat(messages):
    """ChatML text that the model continues."""
    turns = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return turns + "<|im_start|>assistant\n"


# ---- byte-level BPE with Qwen2's pre-tokenizer ----

SPLIT = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_alphabet():
    """GPT-2's spelling: printable bytes stand for themselves, the others for the code points from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in alphabet]
    alphabet.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return alphabet


ALPHABET = byte_alphabet()


def spell(piece):
    return [ALPHABET[byte] for byte in piece.encode("utf-8")]


def merge_pair(symbols, a, b):
    merged, i = [], 0
    while i < len(symbols):
        if symbols[i : i + 2] == [a, b]:
            merged.append(a + b)
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return merged


def train_bpe(texts, vocab_size):
    """Merges in order of frequency over the pre-tokenized texts; ties by the pair itself, so that a rerun agrees."""
    frequency = collections.Counter(piece for text in texts for piece in SPLIT.findall(text))
    spelled = {piece: spell(piece) for piece in frequency}
    merges = []
    while 256 + len(merges) + len(SPECIAL) < vocab_size:
        pairs = collections.Counter()
        for piece, count in frequency.items():
            symbols = spelled[piece]
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += count
        if not pairs:
            break
        (a, b), count = max(pairs.items(), key=lambda item: (item[1], item[0]))
        if count < 2:
            break
        merges.append((a, b))
        for piece, symbols in spelled.items():
            if len(symbols) > 1 and a in symbols:
                spelled[piece] = merge_pair(symbols, a, b)
    return merges


class BPE:
    def __init__(self, merges):
        self.merges = merges
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.tokens = [ALPHABET[byte] for byte in range(256)] + [a + b for a, b in merges] + SPECIAL
        self.id = {token: i for i, token in enumerate(self.tokens)}
        self.byte = {char: byte for byte, char in ALPHABET.items()}
        self.cache = {}

    def piece(self, piece):
        """Ids of one pre-tokenized piece: the best-ranked neighbours merge until none can."""
        if piece not in self.cache:
            symbols = spell(piece)
            while len(symbols) > 1:
                never = len(self.rank)
                rank, i = min((self.rank.get(pair, never), i) for i, pair in enumerate(zip(symbols, symbols[1:])))
                if rank == never:
                    break
                symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            self.cache[piece] = [self.id[symbol] for symbol in symbols]
        return self.cache[piece]

    def encode(self, text):
        ids = []
        for part in re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text):
            if part in SPECIAL:
                ids.append(self.id[part])
            else:
                for piece in SPLIT.findall(part):
                    ids += self.piece(piece)
        return ids

    def decode(self, ids):
        plain = (self.tokens[i] for i in ids if self.tokens[i] not in SPECIAL)
        return bytes(self.byte[char] for token in plain for char in token).decode("utf-8", "replace")
