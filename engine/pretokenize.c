#include "pretokenize.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "unicode.h"
#include "utf8.h"

/* ---- characters ---- */

static const uint32_t other = 1; /* what is not UTF-8 counts as; in no set */

static bool is_tail(char byte) { return ((unsigned char)byte & 0xC0) == 0x80; }

typedef struct character {
  uint32_t category; /* 0 at the end of the text */
  uint32_t length;
} character;

static character decode(const char *text, size_t size, size_t pos)
{
  uint32_t c;
  size_t length;
  const bool valid = kg_utf8_next(text + pos, size - pos, &c, &length) == KG_UTF8_VALID;
  return (character){valid ? kg_unicode_category(c) : other, (uint32_t)length};
}

/* Inlined always: calls would take a third of the splitters' time. */
static inline __attribute__((always_inline)) character char_at(const char *text, size_t size, size_t pos)
{
  if (pos >= size) return (character){0, 0};
  const unsigned char lead = (unsigned char)text[pos];
  if (lead < 0x80) return (character){kg_ascii_category(lead), 1};
  /* The two forms that most text beyond ASCII has; E0 and ED begin also what is no character. */
  if (lead >= 0xC2 && lead < 0xE0 && size - pos > 1 && is_tail(text[pos + 1]))
    return (character){kg_unicode_category((lead & 0x1Fu) << 6 | (text[pos + 1] & 0x3Fu)), 2};
  if (lead > 0xE0 && lead < 0xF0 && lead != 0xED && size - pos > 2 && is_tail(text[pos + 1]) && is_tail(text[pos + 2]))
    return (character){kg_unicode_category((lead & 0xFu) << 12 | (text[pos + 1] & 0x3Fu) << 6 |
                                           (text[pos + 2] & 0x3Fu)), 3};
  return decode(text, size, pos);
}

static uint32_t category_at(const char *text, size_t size, size_t pos) { return char_at(text, size, pos).category; }

/* [set]* */
static size_t skip_all(const char *text, size_t size, size_t pos, uint32_t set)
{
  for (;;) {
    while (pos < size && (unsigned char)text[pos] < 0x80 && kg_ascii_category((unsigned char)text[pos]) & set) pos++;
    const character c = char_at(text, size, pos);
    if (!(c.category & set)) return pos;
    pos += c.length;
  }
}

/* [set]{0,limit} */
static size_t skip(const char *text, size_t size, size_t pos, uint32_t set, size_t limit)
{
  for (; limit; limit--) {
    const character c = char_at(text, size, pos);
    if (!(c.category & set)) break;
    pos += c.length;
  }
  return pos;
}

/* The first character of the set at or after pos, or the end. */
static size_t find(const char *text, size_t size, size_t pos, uint32_t set)
{
  return skip_all(text, size, pos, ~set);
}

/* The category of the character that ends before pos; `other` where none does. */
static uint32_t category_before(const char *text, size_t pos)
{
  size_t begin = pos;
  while (begin && pos - begin < 4)
    if (!is_tail(text[--begin])) break;
  const character c = char_at(text, pos, begin);
  return begin + c.length == pos ? c.category : other;
}

/* ---- pieces of the expressions ---- */

/* 's 't 're 've 'm 'll 'd: its length, or 0. With any_case also in capitals, and U+017F, which folds to s. */
static size_t contraction(const char *text, size_t size, size_t pos, bool any_case)
{
  if (text[pos] != '\'' || size - pos < 2) return 0;
  const char fold = any_case ? 0x20 : 0;
  const char a = text[pos + 1] | fold, b = size - pos > 2 ? text[pos + 2] | fold : 0;
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if (any_case && size - pos > 2 && !memcmp(text + pos + 1, "\xC5\xBF", 2)) return 3;
  return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ where white space starts at pos: the run, without its last character when a word follows it. */
static size_t white_space(const char *text, size_t size, size_t pos, size_t *after_newlines)
{
  size_t last = pos, at = pos;
  *after_newlines = 0;
  for (character c; (c = char_at(text, size, at)).category & KG_WHITE; at += c.length) {
    last = at;
    if (c.category & KG_NEWLINE) *after_newlines = at + c.length;
  }
  return at == size || last == pos ? at : last;
}

/* ---- by hand ---- */

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

static size_t next_gpt2(const char *text, size_t size, size_t pos)
{
  const size_t n = contraction(text, size, pos, false);
  if (n) return pos + n;
  const size_t at = pos + (text[pos] == ' ');
  const character c = char_at(text, size, at);
  if (c.category & KG_LETTER) return skip_all(text, size, at + c.length, KG_LETTER);
  if (c.category & KG_NUMBER) return skip_all(text, size, at + c.length, KG_NUMBER);
  if (c.category & ~KG_WHITE) return skip_all(text, size, at + c.length, ~(KG_LETTER | KG_NUMBER | KG_WHITE));
  size_t after_newlines;
  return white_space(text, size, pos, &after_newlines);
}

#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define BREAKS "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+" /* white space, cut behind its last newline */
#define WORDS "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define SYMBOLS "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
#define LLAMA3 CONTRACTION "|" WORDS "|\\p{N}{1,3}" SYMBOLS BREAKS
#define QWEN2 CONTRACTION "|" WORDS "|\\p{N}" SYMBOLS BREAKS
#define QWEN35 CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" BREAKS

/* LLAMA3, QWEN2 and QWEN35: what is a letter to them, and how many digits make a word. */
static size_t next_llama3(const char *text, size_t size, size_t pos, uint32_t letters, size_t max_digits)
{
  const size_t n = contraction(text, size, pos, true);
  if (n) return pos + n;
  const uint32_t symbols = ~(letters | KG_NUMBER | KG_WHITE);
  const character c = char_at(text, size, pos);
  const size_t at = pos + c.length;
  if (c.category & letters) return skip_all(text, size, at, letters);
  if (c.category & KG_NUMBER) return skip(text, size, at, KG_NUMBER, max_digits - 1);
  const character next = char_at(text, size, at);
  if (!(c.category & KG_NEWLINE) && next.category & letters) return skip_all(text, size, at + next.length, letters);
  if (c.category & symbols || (text[pos] == ' ' && next.category & symbols))
    return skip_all(text, size, skip_all(text, size, at, symbols), KG_NEWLINE);
  size_t after_newlines;
  const size_t end = white_space(text, size, pos, &after_newlines);
  return after_newlines ? after_newlines : end;
}

static size_t next_llama_bpe(const char *text, size_t size, size_t pos)
{
  return next_llama3(text, size, pos, KG_LETTER, 3);
}

static size_t next_qwen2(const char *text, size_t size, size_t pos)
{
  return next_llama3(text, size, pos, KG_LETTER, 1);
}

static size_t next_qwen35(const char *text, size_t size, size_t pos)
{
  return next_llama3(text, size, pos, KG_LETTER | KG_MARK, 1);
}

/* \p{N}{1,limit} and what lies between */
static size_t next_numbers(const char *text, size_t size, size_t pos, size_t limit)
{
  const size_t end = skip(text, size, pos, KG_NUMBER, limit);
  return end > pos ? end : find(text, size, pos, KG_NUMBER);
}

static size_t next_number(const char *text, size_t size, size_t pos)
{
  return next_numbers(text, size, pos, 1);
}

static size_t next_three_numbers(const char *text, size_t size, size_t pos)
{
  return next_numbers(text, size, pos, 3);
}

/* How many of the n digits from here are one group, when the last group of three ends with the last digit. A regular
 * expression would count them anew for each group. */
static size_t first_group(size_t n)
{
  return n % 3 ? n % 3 : 3;
}

static size_t count(const char *text, size_t begin, size_t end)
{
  size_t n = 0;
  for (size_t i = begin; i < end; i++) n += !is_tail(text[i]);
  return n;
}

/* (?=(\d{3})+(?!\d)) cuts where it matches, which is nothing: between groups of three digits, from the right. */
static size_t next_before_three_digits(const char *text, size_t size, size_t pos)
{
  size_t at = pos;
  if (category_before(text, pos) & KG_DIGIT) { /* the cut at pos was one of these */
    at = skip(text, size, pos, KG_DIGIT, 3);
    if (category_at(text, size, at) & KG_DIGIT) return at;
  }
  for (size_t begin; (begin = find(text, size, at, KG_DIGIT)) < size;) {
    at = skip_all(text, size, begin, KG_DIGIT);
    const size_t n = count(text, begin, at);
    if (n % 3 == 0 && begin > pos) return begin;
    if (n > 3) return skip(text, size, begin, KG_DIGIT, first_group(n));
  }
  return size;
}

/* \w at pos. To the engine of the models' own tokenizers also the superscripts and fractions of Latin 1 are words. */
static bool is_word_at(const char *text, size_t size, size_t pos)
{
  const uint32_t c = category_at(text, size, pos);
  return c & KG_WORD || (c & KG_NUMBER && text[pos] == '\xC2');
}

/* \d{1,3}(?=(?:\d{3})*\b): groups of three digits, from the right, unless a letter or the like follows. */
static size_t next_digits_of_word(const char *text, size_t size, size_t pos)
{
  if (category_before(text, pos) & KG_DIGIT) {
    const size_t end = skip(text, size, pos, KG_DIGIT, 3);
    if (end > pos) return end; /* a later group */
  }
  for (size_t at = pos;;) {
    const size_t begin = find(text, size, at, KG_DIGIT), end = skip_all(text, size, begin, KG_DIGIT);
    if (begin == size) return size;
    const bool cut = !is_word_at(text, size, end);
    if (cut && begin > pos) return begin;
    if (cut) return skip(text, size, begin, KG_DIGIT, first_group(count(text, begin, end)));
    at = end;
  }
}

/* The same for all numbers, whatever follows. */
static size_t next_numbers_by_three(const char *text, size_t size, size_t pos)
{
  const bool is_later = (category_before(text, pos) & KG_NUMBER) != 0;
  const size_t end = skip(text, size, pos, KG_NUMBER, is_later ? 3 : SIZE_MAX);
  if (end == pos) return find(text, size, pos, KG_NUMBER);
  return is_later ? end : skip(text, size, pos, KG_NUMBER, first_group(count(text, pos, end)));
}

/* Falcon looks for numbers after bytes have become letters: then also the bytes that are written as superscripts and
 * fractions are numbers. */
static bool is_numeric_byte(char byte)
{
  const unsigned char b = (unsigned char)byte;
  return (b >= '0' && b <= '9') || b == 0xB2 || b == 0xB3 || b == 0xB9 || (b >= 0xBC && b <= 0xBE);
}

static bool has_three_digits(const char *text, size_t size, size_t pos)
{
  if (size - pos < 3) return false;
  for (size_t i = pos; i < pos + 3; i++)
    if (text[i] < '0' || text[i] > '9') return false;
  return true;
}

/* Runs of numeric bytes, then [0-9][0-9][0-9] in them. */
static size_t next_falcon_digits(const char *text, size_t size, size_t pos)
{
  size_t end = pos;
  if (!is_numeric_byte(text[pos])) {
    while (end < size && !is_numeric_byte(text[end])) end++;
    return end;
  }
  if (has_three_digits(text, size, pos)) return pos + 3;
  while (end < size && is_numeric_byte(text[end]) && !has_three_digits(text, size, end)) end++;
  return end;
}

/* ---- the other expressions ---- */

/* Words that start with a capital and go on in small letters; letters without case are both. */
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define PREFIX "[^\\r\\n\\p{L}\\p{N}]?"
#define CASED(upper, lower, suffix) PREFIX upper "*" lower "+" suffix "|" PREFIX upper "+" lower "*" suffix
#define GPT4O CASED(UPPER, LOWER, CONTRACTION "?") "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" BREAKS
#define TEKKEN CASED(UPPER, LOWER, "") "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" BREAKS

/* The same letters less Han characters: PCRE2 has no intersections, so these are what they are not. */
#define HAN "\\p{sc:Han}"
#define UPPER_NOT_HAN "[^\\p{Ll}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}" HAN "]"
#define LOWER_NOT_HAN "[^\\p{Lu}\\p{Lt}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}" HAN "]"
#define KIMI "[" HAN "]+|" CASED(UPPER_NOT_HAN, LOWER_NOT_HAN, CONTRACTION "?") "|\\p{N}{1,3}" SYMBOLS BREAKS

#define CJK "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+"
#define DEEPSEEK_CJK "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"
#define ASCII_PUNCTUATION "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"
#define DEEPSEEK3(after, breaks) \
  ASCII_PUNCTUATION "[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+" after "|" \
  breaks "|\\s+(?!\\S)|\\s+"

/* Cased letters of Unicode 11, as the file of the model lists them */
#define DEEPSEEK_LETTERS \
  "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}" \
  "\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}\\x{388}-\\x{38A}" \
  "\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}" \
  "\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}" \
  "\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}" \
  "\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}" \
  "\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}" \
  "\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}" \
  "\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}\\x{212A}-\\x{212D}" \
  "\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}" \
  "\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}" \
  "\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}" \
  "\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}" \
  "\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}" \
  "\\x{1E900}-\\x{1E943}"

/* \s+$, where a piece has no newline but is one; searched for at the start of white space only */
#define TRAILING_SPACE "(?<!\\s)\\s++$"

/* Bloom's class lists parentheses and bars of its own syntax. */
#define BLOOM " ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{FF0C}\\x{3001}\\x{964}\\x{6D4}\\x{60C})]+"

/* Behind white space no newline can be ahead: it would have been taken before. Without that look behind, every piece
 * of a long run of spaces would search all of the run. */
#define JAIS2 \
  CONTRACTION "|" WORDS "|\\p{N}{1,3}" SYMBOLS "(?<![^\\S\\r\\n])\\s*[\\r\\n]+|" \
  "\\s{512}(?!\\S)|\\s{256}(?!\\S)|\\s{128}(?!\\S)|\\s{64}(?!\\S)|\\s{32}(?!\\S)|\\s{16}(?!\\S)|" \
  "\\s{8}(?!\\S)|\\s{4}(?!\\S)|\\s{1,2}(?!\\S)|\\s{1}"

#define BAILING \
  "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|" \
  "\\s+(?!\\S)|\\s+"

/* The model's (?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+ without nested repeats */
#define EXAONE_MOE CONTRACTION "|" PREFIX "\\p{L}[\\p{L}\\p{M}]*+(?: \\p{L}[\\p{L}\\p{M}]*+)*+|\\p{N}|" \
  " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"

#define YOUTU_SCRIPTS \
  "[\\x{AC00}-\\x{D7A3}\\x{3131}-\\x{318E}]+|[\\x{FF01}\\x{2026}\\x{201C}\\x{201D}\\x{2018}\\x{2019}" \
  "\\x{2014}\\x{FF1A}\\x{FF1B}\\x{FF0C}\\x{3001}-\\x{303F}\\x{FE30}-\\x{FE4F}]+|[\\x{3105}-\\x{312F}]+|" CJK

#define AFMOE_SCRIPTS \
  "[\\x{4E00}-\\x{9FFF}\\x{3400}-\\x{4DBF}\\x{F900}-\\x{FAFF}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}" \
  "\\x{FF65}-\\x{FF9F}\\x{2F00}-\\x{2FDF}\\x{E40}-\\x{E7F}\\x{E80}-\\x{EFF}\\x{1780}-\\x{17FF}\\x{1000}-\\x{109F}" \
  "\\x{AA60}-\\x{AA7F}\\x{A9E0}-\\x{A9FF}\\x{AC00}-\\x{D7AF}\\x{1100}-\\x{11FF}]+"

/* ---- sequences of rules ---- */

typedef kg_split_rule rules[KG_SPLIT_RULES_MAX + 1];

static const rules gpt2 = {{GPT2, next_gpt2}};
static const rules llama3 = {{LLAMA3, next_llama_bpe}};
static const rules qwen2 = {{QWEN2, next_qwen2}};
static const rules qwen35 = {{QWEN35, next_qwen35}};
static const rules gpt4o = {{GPT4O, NULL}};
static const rules tekken = {{TEKKEN, NULL}};
static const rules kimi = {{KIMI, NULL}};
static const rules digits_gpt2 = {{"\\p{N}", next_number}, {GPT2, next_gpt2}};
/* What runtimes do with a file that names none: its splits are nobody's, but close to GPT-2's. */
static const rules by_default = {
    {"[\\p{P}\\$\\+<=>\\^~\\|]+", NULL}, {GPT2, next_gpt2}, {"\\p{N}+", NULL}, {"[0-9][0-9][0-9]", NULL}};
static const rules falcon = {{"[\\p{P}\\$\\+<=>\\^~\\|`]+", NULL}, {GPT2, next_gpt2}, {NULL, next_falcon_digits}};
static const rules deepseek_llm = {{"[\\r\\n]", NULL},
                                   {"\\s?[" DEEPSEEK_LETTERS "]+", NULL},
                                   {"\\s?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}"
                                    "\\x{3000}-\\x{3002}]+", NULL},
                                   {TRAILING_SPACE, NULL},
                                   {DEEPSEEK_CJK, NULL},
                                   {"\\p{N}", next_number}};
static const rules deepseek_coder = {
    {"[\\r\\n]", NULL}, {"\\s?\\p{L}+", NULL}, {"\\s?\\p{P}+", NULL}, {DEEPSEEK_CJK, NULL}, {"\\p{N}", next_number}};
static const rules deepseek3 = {
    {"\\p{N}{1,3}", next_three_numbers}, {CJK, NULL}, {DEEPSEEK3("[\\r\\n]*", "\\s*[\\r\\n]+"), NULL}};
static const rules spark = {
    {"\\p{N}{1,3}", next_three_numbers}, {CJK, NULL}, {DEEPSEEK3("", "[\\r\\n]"), NULL}, {"\\p{N}", next_number}};
static const rules afmoe = {
    {NULL, next_numbers_by_three}, {AFMOE_SCRIPTS, NULL}, {DEEPSEEK3("[\\r\\n]*", "\\s*[\\r\\n]+"), NULL}};
static const rules youtu = {
    {YOUTU_SCRIPTS, NULL},
    {CASED(UPPER, LOWER, CONTRACTION "?") "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" BREAKS, NULL}};
static const rules bloom = {{BLOOM, NULL}};
static const rules viking = {{BLOOM, NULL}, {"\\p{N}", next_number}};
static const rules chameleon = {{"<sentinel:[0-9]+>", NULL},
                                {"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", NULL},
                                {"([\\t\\n]|    |  )", NULL},
                                {"\\p{N}", next_number},
                                {"[\\p{P}!-/:-@\\[-`{-~]", NULL},
                                {GPT2, next_gpt2}};
static const rules jais2 = {{JAIS2, NULL}};
static const rules bailing = {{BAILING, NULL}};
static const rules exaone_moe = {{EXAONE_MOE, NULL}};
static const rules seed_coder = {
    {CONTRACTION "|" WORDS "|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|" BREAKS, NULL}};
static const rules ufakzeka = {{WORDS "|\\p{N}" SYMBOLS BREAKS, NULL}};
static const rules minicpm5 = {
    {"\\p{N}{1,3}", next_three_numbers}, {CONTRACTION "|" WORDS "|\\p{N}+" SYMBOLS BREAKS, NULL}};
static const rules k2_horizon = {
    {CONTRACTION "|" PREFIX "[\\p{L}\\p{M}\\x{200C}\\x{200D}]+|\\p{N}{1,3}" SYMBOLS BREAKS, NULL}};
static const rules superbpe = {{"\\p{N}+", NULL}, {"(?=(\\d{3})+(?!\\d))", next_before_three_digits}};
static const rules tiny_aya = {{NULL, next_digits_of_word}, {GPT4O, NULL}};

/* ---- names ---- */

/* Every name that converters write into public files. Expressions are those of the models' own tokenizer.json, where
 * they differ from what runtimes make of them. */
static const kg_pretokenizer pretokenizers[] = {
    {"default", by_default, 0},
    {"gpt-2", gpt2, 0},
    {"phi-2", gpt2, 0},
    {"mpt", gpt2, KG_PRE_NFC},
    {"olmo", gpt2, KG_PRE_NFC},
    {"jais", gpt2, 0},
    {"trillion", gpt2, 0},
    {"exaone4", gpt2, 0},
    {"gigachat", gpt2, 0},
    {"mellum", gpt2, 0},
    {"a.x-4.0", gpt2, 0},
    {"granite-docling", gpt2, 0},
    {"modern-bert", gpt2, 0},
    {"roberta-bpe", gpt2, 0},
    {"jina-es", gpt2, 0},
    {"jina-de", gpt2, 0},
    {"jina-v1-en", gpt2, 0},
    {"jina-v2-es", gpt2, 0},
    {"jina-v2-de", gpt2, 0},
    {"jina-v2-code", gpt2, 0},
    {"starcoder", digits_gpt2, 0},
    {"refact", digits_gpt2, 0},
    {"command-r", digits_gpt2, KG_PRE_NFC},
    {"smollm", digits_gpt2, 0},
    {"codeshell", digits_gpt2, 0},
    {"exaone", digits_gpt2, 0},
    {"minerva-7b", digits_gpt2, 0},
    {"mellum2", digits_gpt2, 0},
    {"qwen2", qwen2, KG_PRE_NFC},
    {"deepseek-r1-qwen", qwen2, 0},
    {"stablelm2", qwen2, 0},
    {"hunyuan", qwen2, 0},
    {"megrez", qwen2, 0},
    {"kormo", qwen2, 0},
    {"solar-open", qwen2, 0},
    {"grok-2", qwen2, 0},
    {"f2llmv2", qwen2, 0},
    {"qwen35", qwen35, KG_PRE_NFC},
    {"llama-bpe", llama3, KG_PRE_WHOLE_WORDS | KG_PRE_ADD_BOS},
    {"llama3", llama3, KG_PRE_WHOLE_WORDS | KG_PRE_ADD_BOS},
    {"llama-v3", llama3, KG_PRE_WHOLE_WORDS | KG_PRE_ADD_BOS},
    {"falcon3", llama3, KG_PRE_WHOLE_WORDS | KG_PRE_ADD_BOS},
    {"falcon-h1", llama3, KG_PRE_WHOLE_WORDS | KG_PRE_ADD_BOS},
    {"pixtral", llama3, KG_PRE_WHOLE_WORDS | KG_PRE_ADD_BOS},
    {"midm-2.0", llama3, KG_PRE_WHOLE_WORDS | KG_PRE_ADD_BOS},
    {"lfm2", llama3, KG_PRE_WHOLE_WORDS | KG_PRE_ADD_BOS},
    {"jina-v5-nano", llama3, KG_PRE_WHOLE_WORDS | KG_PRE_ADD_BOS},
    {"dbrx", llama3, 0},
    {"smaug-bpe", llama3, 0},
    {"chatglm-bpe", llama3, 0},
    {"glm4", llama3, 0},
    {"glm5", llama3, 0},
    {"k2-horizon", k2_horizon, 0},
    {"jais-2", jais2, 0},
    {"gpt-4o", gpt4o, 0},
    {"llama4", gpt4o, 0},
    {"kanana2", gpt4o, 0},
    {"talkie", gpt4o, 0},
    {"minimax-m2", gpt4o, 0},
    {"granite-embed-multi-97m", gpt4o, KG_PRE_WHOLE_WORDS},
    {"tekken", tekken, KG_PRE_WHOLE_WORDS | KG_PRE_ADD_BOS},
    {"kimi-k2", kimi, 0},
    {"deepseek-llm", deepseek_llm, 0},
    {"deepseek-coder", deepseek_coder, 0},
    {"deepseek-v3", deepseek3, 0},
    {"hunyuan-dense", deepseek3, 0},
    {"joyai-llm", deepseek3, 0},
    {"hy_v4", deepseek3, 0},
    {"spark2_5", spark, 0},
    {"afmoe", afmoe, 0},
    {"youtu", youtu, KG_PRE_WHOLE_WORDS},
    {"falcon", falcon, 0},
    {"bloom", bloom, 0},
    {"poro-chat", bloom, 0},
    {"gpt3-finnish", bloom, 0},
    {"viking", viking, 0},
    {"chameleon", chameleon, KG_PRE_ADD_BOS},
    {"bailingmoe", bailing, 0},
    {"bailingmoe2", bailing, 0},
    {"llada-moe", bailing, 0},
    {"seed-coder", seed_coder, 0},
    {"exaone-moe", exaone_moe, 0},
    {"minicpm5", minicpm5, KG_PRE_WHOLE_WORDS},
    {"ufakzeka", ufakzeka, 0},
    {"superbpe", superbpe, 0},
    {"tiny_aya", tiny_aya, 0},
    {"cohere2moe", tiny_aya, 0},
};

enum { N_PRETOKENIZERS = sizeof pretokenizers / sizeof pretokenizers[0] };

const kg_pretokenizer *kg_pretokenizer_find(const char *name, size_t size)
{
  for (size_t i = 0; i < N_PRETOKENIZERS; i++)
    if (strlen(pretokenizers[i].name) == size && !memcmp(pretokenizers[i].name, name, size)) return &pretokenizers[i];
  return NULL;
}

const char *kg_pretokenizer_name(size_t i)
{
  return i < N_PRETOKENIZERS ? pretokenizers[i].name : NULL;
}

const char *kg_pretokenizer_names(char *buffer, size_t size)
{
  size_t used = 0;
  buffer[0] = 0;
  for (size_t i = 0; i < N_PRETOKENIZERS && used < size; i++)
    used += (size_t)snprintf(buffer + used, size - used, "%s%s", i ? ", " : "", pretokenizers[i].name);
  return buffer;
}

/* ---- splitters ---- */

int kg_splitter_init(kg_splitter *splitter, const kg_pretokenizer *pre, bool by_regex, kg_error *err)
{
  for (const kg_split_rule *rule = pre->rules; rule->regex || rule->by_hand; rule++) {
    const size_t i = splitter->n_rules++;
    splitter->rules[i] = *rule;
    if (rule->by_hand && (!by_regex || !rule->regex)) continue;
    const int rc = kg_regex_new(rule->regex, &splitter->regexes[i], err);
    if (rc) return rc;
    splitter->has_regex = true;
  }
  return KG_OK;
}

void kg_splitter_deinit(kg_splitter *splitter)
{
  for (size_t i = 0; i < splitter->n_rules; i++) kg_regex_free(splitter->regexes[i]);
}

/* PCRE2 takes only UTF-8: bytes that are none become control characters, so that sizes stay. */
static int copy_valid(kg_split *split, const char *text, size_t size, kg_error *err)
{
  split->text = split->valid = kg_copy_bytes(text, size);
  if (!split->valid) return kg_fail_memory(err, size, "encoding");
  uint32_t c;
  for (size_t i = 0, length; i < size; i += length)
    if (kg_utf8_next(text + i, size - i, &c, &length) != KG_UTF8_VALID) memset(split->valid + i, 1, length);
  return KG_OK;
}

int kg_split_begin(kg_split *split, const kg_splitter *splitter, const char *text, size_t size, kg_error *err)
{
  split->splitter = splitter;
  split->text = text;
  split->levels[0].begin = split->levels[0].pos = 0;
  split->levels[0].end = size;
  for (size_t i = 1; i < splitter->n_rules; i++) split->levels[i].pos = split->levels[i].end = 0;
  for (size_t i = 0; i < splitter->n_rules; i++) split->levels[i].match_end = 0;
  if (!splitter->has_regex) return KG_OK;
  split->match = kg_match_new(err);
  if (!split->match) return KG_ERR_MEMORY;
  return kg_utf8_is_valid(text, size) ? KG_OK : copy_valid(split, text, size, err);
}

/* Where the piece that starts at the level's pos ends by PCRE2. */
static int next_by_regex(kg_split *split, size_t level, size_t *end, kg_error *err)
{
  kg_split_level *l = &split->levels[level];
  if (l->match_end <= l->pos) { /* the last one is behind us */
    size_t begin, match_end;
    const int rc = kg_regex_find(split->splitter->regexes[level], split->match, split->text + l->begin,
                                 l->end - l->begin, l->pos - l->begin, &begin, &match_end, err);
    if (rc) return rc;
    l->match_begin = l->begin + begin;
    l->match_end = l->begin + match_end;
  }
  *end = l->match_begin > l->pos ? l->match_begin : l->match_end;
  return KG_OK;
}

/* Move the level's pos to the end of its next piece, [*begin, pos). */
static int move(kg_split *split, size_t level, size_t *begin, kg_error *err)
{
  kg_split_level *l = &split->levels[level];
  if (l->pos == l->end) { /* a rule above goes on; the first one has more, or we would not have been called */
    const int rc = move(split, level - 1, &l->begin, err);
    if (rc) return rc;
    l->pos = l->begin;
    l->end = split->levels[level - 1].pos;
    l->match_end = 0;
  }
  *begin = l->pos;
  if (split->splitter->regexes[level]) return next_by_regex(split, level, &l->pos, err);
  const kg_split_next next = split->splitter->rules[level].by_hand;
  l->pos = l->begin + next(split->text + l->begin, l->end - l->begin, l->pos - l->begin);
  return KG_OK;
}

int kg_split_move(kg_split *split, size_t *pos, kg_error *err)
{
  const size_t last = split->splitter->n_rules - 1;
  size_t begin;
  if (!last && !split->splitter->has_regex) { /* the usual case, and the fastest */
    *pos = split->splitter->rules[0].by_hand(split->text, split->levels[0].end, *pos);
    return KG_OK;
  }
  const int rc = move(split, last, &begin, err);
  *pos = split->levels[last].pos;
  return rc;
}

void kg_split_end(kg_split *split)
{
  kg_match_free(split->match);
  kg_free(split->valid);
}
