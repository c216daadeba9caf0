"""Compare kigo's byte-level BPE with Hugging Face `tokenizers` on random strings, for every kind of pre-tokenizer.

usage: check_tokenizers.py VOCAB.gguf [--strings 10000] [--seed 1] [--kigo build/kigo] [KIND ...]
Needs tokenizers and gguf (development tools, never dependencies):
  python3 -m venv peer && peer/bin/pip install tokenizers gguf
  peer/bin/python scripts/check_tokenizers.py ../shared/fixtures/vocab/qwen2.gguf
The pipelines below are written down from the models' own tokenizer.json, apart from the table in engine/pretokenize.c.
Strings hold only characters that Python's Unicode version knows: newer ones differ between libraries.
Exit status 1 where an id differs, or where decoding does not give the string back.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import unicodedata

import gguf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers as pre


def split(regex):
    return pre.Split(Regex(regex), "isolated")


def byte_level(use_regex=False):
    return pre.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def sequence(*steps):
    return pre.Sequence([split(step) if isinstance(step, str) else step for step in steps] + [byte_level()])


CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
BREAKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|" + BREAKS
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def cased(upper, lower, suffix):
    prefix = r"[^\r\n\p{L}\p{N}]?"
    return f"{prefix}{upper}*{lower}+{suffix}|{prefix}{upper}+{lower}*{suffix}"


def cl100k(words, numbers):
    return rf"{CONTRACTION}|{words}|{numbers}|" + TAIL


LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
GPT4O = cased(UPPER, LOWER, CONTRACTION + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + BREAKS
NOT_HAN = r"&&[^\p{Han}]]"
KIMI = r"[\p{Han}]+|" + cased(UPPER[:-1] + NOT_HAN, LOWER[:-1] + NOT_HAN, CONTRACTION + "?") + r"|\p{N}{1,3}|" + TAIL
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + BREAKS
)
DEEPSEEK_LETTERS = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}"
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}"
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}"
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}"
    r"\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}"
    r"\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}"
    r"\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}"
    r"\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}"
    r"\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}"
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}"
    r"\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}"
    r"\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}"
    r"\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)
DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
DIGITS = pre.Digits(individual_digits=True)

KINDS = {
    "gpt-2": byte_level(True),
    "starcoder": pre.Sequence([DIGITS, byte_level(True)]),
    "qwen2": sequence(cl100k(LETTERS, r"\p{N}")),
    "qwen35": sequence(
        CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + BREAKS
    ),
    "llama-bpe": sequence(cl100k(LETTERS, r"\p{N}{1,3}")),
    "dbrx": sequence(cl100k(LETTERS, r"\p{N}{1,3}")),
    "k2-horizon": sequence(cl100k(r"[^\r\n\p{L}\p{N}]?(?:\p{L}|\p{M}|\u200C|\u200D)+", r"\p{N}{1,3}")),
    "jais-2": sequence(
        rf"{CONTRACTION}|{LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
        + "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
        + r"|\s{1}"
    ),
    "gpt-4o": sequence(GPT4O),
    "tekken": sequence(cased(UPPER, LOWER, "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + BREAKS),
    "kimi-k2": sequence(KIMI),
    "deepseek-llm": sequence(
        r"[\r\n]", rf"\s?[{DEEPSEEK_LETTERS}]+", DEEPSEEK_PUNCTUATION, r"\s+$", DEEPSEEK_CJK, DIGITS
    ),
    "deepseek-coder": sequence(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGITS),
    "deepseek-v3": sequence(r"\p{N}{1,3}", CJK, DEEPSEEK3),
    "spark2_5": sequence(r"\p{N}{1,3}", CJK, DEEPSEEK3.replace(r"+[\r\n]*|\s*[\r\n]+|", r"+|[\r\n]|"), DIGITS),
    "afmoe": sequence(
        r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
        "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
        "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
        DEEPSEEK3,
    ),
    "youtu": sequence(
        "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
        "\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + CJK,
        cased(UPPER, LOWER, CONTRACTION + "?") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + BREAKS,
    ),
    "falcon": pre.Sequence(
        [pre.Punctuation("contiguous"), byte_level(True), pre.Digits(individual_digits=False), split("[0-9][0-9][0-9]")]
    ),
    "bloom": sequence(BLOOM),
    "viking": sequence(BLOOM, DIGITS),
    "chameleon": sequence(
        r"<sentinel:[0-9]+>",
        r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        "([\t\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        GPT2,
    ),
    "bailingmoe": sequence(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "seed-coder": sequence(CONTRACTION + rf"|{LETTERS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|" + BREAKS),
    "exaone-moe": sequence(
        CONTRACTION + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|"
        r"\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "minicpm5": sequence(r"\p{N}{1,3}", cl100k(LETTERS, r"\p{N}+")),
    "ufakzeka": sequence(rf"{LETTERS}|\p{{N}}|" + TAIL),
    "superbpe": sequence(r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
    "tiny_aya": sequence(r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O),
    "default": sequence(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
KINDS["qwen2+nfc"] = KINDS["qwen2"]  # with form C, as Python makes it: the peer's data are older than newer marks
WHOLE_WORDS = {"llama-bpe", "tekken", "minicpm5", "youtu"}

# kigo's side: strings as JSON lines in, lines of ids out; "null" for a string that decoding does not give back.
SCRIPT = """
local core, json = require "kigo.core", require "cjson"
local gguf <close> = assert(core.open_gguf(arg[1]))
local pre, nfc = arg[2]:match "^([^+]*)(.*)$"
local tokenizer <close> = assert(core.tokenizer(gguf, { pre = pre, normalize = nfc ~= "" }))
for line in io.lines(arg[3]) do
  local text = json.decode(line)[1]
  local ids = assert(tokenizer:encode(text))
  io.write((tokenizer.normalize or tokenizer:decode(ids) == text) and table.concat(ids, " ") or "null", "\\n")
end
"""


def alphabets():
    """Lists of characters to draw from; whole scripts by the first word of their names."""
    known = [c for c in map(chr, range(0x20, 0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    names = {}
    for c in known:
        names.setdefault(unicodedata.name(c, "CONTROL").split()[0], []).append(c)
    scripts = [names[key] for key in sorted(names) if len(names[key]) > 40]
    marks = [c for c in known if unicodedata.category(c).startswith("M")]
    numbers = [c for c in known if unicodedata.category(c).startswith("N")]
    spaces = list(" \t\n\r\v\f\u0085\u00a0\u1680\u2003\u2028\u202f\u205f\u3000\u180e\u200b\u200c\u200d\ufeff")
    controls = [chr(c) for c in list(range(1, 32)) + [127, 128, 159]]
    emoji = [chr(c) for c in range(0x1F300, 0x1F6FF) if unicodedata.category(chr(c)) == "So"]
    emoji += ["\u200d", "\ufe0f", "\U0001f3fd", "\U0001f1e9", "\U0001f1ea"]
    ascii_ = [chr(c) for c in range(32, 127)]
    return [known, *scripts, marks, numbers, spaces, spaces, controls, emoji, ascii_, ascii_, ascii_]


PIECES = (
    "'s 't 're 've 'm 'll 'd 'S 'RE 'Ve 'LL 'D '\u017f don't I'M hello Hello HELLO HelloWorld the na\u00efve e\u0301 "
    "\u4e2d\u6587 \u65e5\u672c \ud55c\uad6d\uc5b4 \u041f\u0440\u0438\u0432\u0435\u0442 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 "
    "\u0645\u0631\u062d\u0628\u0627 \u00bd 1 12 123 1234 1234567 3.14 1,000 // \\n != ==> ... !! ?! <|x|> "
    "<sentinel:12> IMGIMGABZ http://a.b/c?d=e"
).split(" ") + [" ", "  ", "    ", "\n", "\r\n", "\n\n", " \n", "\t", "\t\t", " " * 9, "\n " * 3]


def strings(count, seed):
    dice, sets, out = random.Random(seed), alphabets(), []
    for _ in range(count):
        parts = []
        for _ in range(dice.randint(1, 12)):
            kind = dice.random()
            if kind < 0.45:
                parts.append(dice.choice(PIECES))
            elif kind < 0.9:
                letters = dice.choice(sets)
                parts.append("".join(dice.choice(letters) for _ in range(dice.randint(1, 8))))
            else:
                parts.append(dice.choice(dice.choice(sets)) * dice.randint(1, 40))
            if dice.random() < 0.3:
                parts.append(" ")
        out.append("".join(parts))
    return out


def vocabulary(path):
    reader = gguf.GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    return {token: id for id, token in enumerate(tokens)}, [tuple(merge.split(" ", 1)) for merge in merges]


def unknown_punctuation():
    """Punctuation that the peer's pre-tokenizer of that name, whose Unicode data is older, does not know."""
    punctuation = (c for c in map(chr, range(0x80, 0x110000)) if unicodedata.category(c).startswith("P"))
    return {c for c in punctuation if len(pre.Punctuation("contiguous").pre_tokenize_str(f"a{c}a")) == 1}


def ours(arguments, kind, file):
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT)
        script.flush()
        command = [arguments.kigo, script.name, arguments.vocabulary, kind, file]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split("\n")[:-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vocabulary")
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--strings", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kigo", default="build/kigo")
    arguments = parser.parse_intermixed_args()
    vocab, merges = vocabulary(arguments.vocabulary)
    texts, failed, unknown = strings(arguments.strings, arguments.seed), False, unknown_punctuation()
    with tempfile.NamedTemporaryFile("w") as file:
        file.writelines(json.dumps([text]) + "\n" for text in texts)
        file.flush()
        for kind in arguments.kinds or KINDS:
            peer = Tokenizer(models.BPE(vocab, merges, ignore_merges=kind in WHOLE_WORDS))
            peer.pre_tokenizer = KINDS[kind]
            inputs = [unicodedata.normalize("NFC", text) for text in texts] if kind.endswith("+nfc") else texts
            theirs = [" ".join(map(str, e.ids)) for e in peer.encode_batch_fast(inputs, add_special_tokens=False)]
            lines = ours(arguments, kind, file.name)
            lossy = sum(line == "null" for line in lines)
            different = [i for i in range(len(texts)) if lines[i] != theirs[i]]
            note = ""
            if kind == "falcon":
                known = [i for i in different if not unknown & set(texts[i])]
                note = f" ({len(different) - len(known)} more with punctuation that is new to the peer)"
                different = known
            print(f"{kind:16} {len(texts)} strings, {len(different)} differ{note}, {lossy} not given back", flush=True)
            for i in different[:3]:
                print(f"  {texts[i]!a}\n    kigo  {lines[i]}\n    peer  {theirs[i]}")
            failed = failed or different or lossy
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
