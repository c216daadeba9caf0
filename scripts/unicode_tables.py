"""Write engine/unicode.c: the general category of every character, from the Unicode data of utf8proc, and the
properties White_Space and Alphabetic, from PCRE2's. One Unicode version is pinned below; the script refuses a
utf8proc of another.

usage: unicode_tables.py [--check] [FILE]     needs libutf8proc and libpcre2-8 (>= 10.40) of this system
--check writes nothing and fails where the file differs from what would be written.
"""

import argparse
import ctypes
import ctypes.util
import sys

UNICODE = "15.0.0"
BLOCK = 128  # code points in a block; blocks that are alike are stored once
# Beyond utf8proc's 30 categories, and in the place of surrogates, which no text has. NEWLINE: CR and LF, also white.
ALPHABETIC_SYMBOL, WHITE_SPACE, NEWLINE = 28, 30, 31
SYMBOL = 22  # utf8proc's number of So
ZERO = ord("(")  # category 0 as a character: none becomes a quote or a backslash, nor a "?", as all Zs are white space


def load(name):
    path = ctypes.util.find_library(name)
    if not path:
        sys.exit(f"unicode_tables.py: lib{name} is not here")
    return ctypes.CDLL(path)


def with_property(name):
    """The characters with this property."""
    pcre2 = load("pcre2-8")
    pcre2.pcre2_compile_8.restype = ctypes.c_void_p
    pcre2.pcre2_match_data_create_8.restype = ctypes.c_void_p
    code, offset = ctypes.c_int(), ctypes.c_size_t()
    utf, no_context = 0x00080000, None
    compiled = pcre2.pcre2_compile_8(
        rb"\p{%s}" % name.encode(), ctypes.c_size_t(-1), utf, ctypes.byref(code), ctypes.byref(offset), no_context
    )
    if not compiled:
        sys.exit(f"unicode_tables.py: PCRE2 does not know {name} (error {code.value})")
    data = pcre2.pcre2_match_data_create_8(1, None)

    def has(c):
        text, start = chr(c).encode(), ctypes.c_size_t(0)
        code, size = ctypes.c_void_p(compiled), ctypes.c_size_t(len(text))
        return pcre2.pcre2_match_8(code, text, size, start, 0, ctypes.c_void_p(data), None) > 0

    return {c for c in range(0x110000) if not 0xD800 <= c < 0xE000 and has(c)}


def categories():
    """A category for each code point."""
    utf8proc = load("utf8proc")
    utf8proc.utf8proc_unicode_version.restype = ctypes.c_char_p
    version = utf8proc.utf8proc_unicode_version().decode()
    if version != UNICODE:
        sys.exit(f"unicode_tables.py: this utf8proc knows Unicode {version}, not {UNICODE}")
    table = bytearray(utf8proc.utf8proc_category(c) for c in range(0x110000))
    for c in with_property("Alphabetic"):
        if table[c] == SYMBOL:
            table[c] = ALPHABETIC_SYMBOL
    for c in with_property("White_Space"):
        table[c] = WHITE_SPACE
    for c in b"\r\n":
        table[c] = NEWLINE
    return table


def wrap(items, joint):
    """Lines of at most 120 columns."""
    lines, line = [], " "
    for item in items:
        if len(line) + len(item) + len(joint) > 119:
            lines.append(line)
            line = " "
        line += joint + item
    return "\n".join(lines + [line])


def text_lines(text):
    return "\n".join(f'  "{text[at : at + 114]}"' for at in range(0, len(text), 114))


def header():
    table = categories()
    blocks, index = {}, []
    for start in range(0, len(table), BLOCK):
        block = bytes(table[start : start + BLOCK])
        index.append(blocks.setdefault(block, len(blocks)))
    if len(blocks) > 256:
        sys.exit("unicode_tables.py: more than 256 blocks")
    text = "".join(chr(ZERO + category) for block in blocks for category in block)
    return (
        f"/* unicode.c - made by scripts/unicode_tables.py from the data of utf8proc and PCRE2: Unicode {UNICODE}. */\n"
        f"/* Blocks of {BLOCK} code points, the first one first; and the categories of their code points,\n"
        f" * in utf8proc's numbers, each written as the character '{chr(ZERO)}' + number. {ALPHABETIC_SYMBOL}: alphabetic So, "
        f"{WHITE_SPACE}: white space, {NEWLINE}: CR or LF. */\n"
        '#include "unicode.h"\n\n'
        f"const unsigned char kg_category_blocks[{len(index)}] = {{\n"
        + wrap([f"{number}," for number in index], " ")
        + f"\n}};\n\nconst char kg_categories[{len(text)} + 1] =\n{text_lines(text)};\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("file", nargs="?", default="engine/unicode.c")
    arguments = parser.parse_args()
    text = header()
    if arguments.check:
        if open(arguments.file, encoding="utf-8").read() != text:
            sys.exit(f"{arguments.file} is not what this script writes")
        return
    with open(arguments.file, "w", encoding="utf-8") as out:
        out.write(text)


if __name__ == "__main__":
    main()
