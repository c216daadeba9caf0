"""Validate with jsonschema what kigo writes by chance under the masks of schemas of the real world.

usage: check_schemas.py VOCAB.gguf [--schemas FILE.jsonl] [--texts 5] [--seed 1] [--kigo build/kigo]
Needs jsonschema (a development tool, never a dependency):
  python3 -m venv peer && peer/bin/pip install 'jsonschema[format]'
  peer/bin/python scripts/check_schemas.py ../shared/fixtures/vocab/qwen2.gguf
Every schema is read as draft 2020-12, with format checks. Differences of the validator, made up for here: numbers are
decimals (it divides doubles), patterns are ECMA 262's (it takes Python's), and where a schema uses the older forms of keywords
(items as a list, exclusiveMinimum as a boolean) it is read as the draft that has them; leap seconds are checked here, because
its checker knows none.
Exit status 1 where a text is invalid, a schema takes more than 250 ms or 64 MiB, or fewer than 85 of 100 compile.
"""

import argparse
import collections
import decimal
import json
import re
import subprocess
import sys

import jsonschema
from jsonschema import Draft4Validator, Draft7Validator, Draft202012Validator, FormatChecker, validators

LIMIT_MS, LIMIT_BYTES = 250, 64 << 20


def number(text):
    return decimal.Decimal(text)


def is_number(checker, value):
    return isinstance(value, (int, decimal.Decimal)) and not isinstance(value, bool)


def is_integer(checker, value):
    return is_number(checker, value) and value == int(value)


WHITE = r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "s": WHITE}


def python_pattern(pattern):
    """ECMA's classes and anchors in Python's words."""
    out, at, inside = [], 0, False
    while at < len(pattern):
        c = pattern[at]
        if c == "\\":
            c = pattern[at + 1]
            if c in "dws":
                out.append(CLASSES[c] if inside else f"[{CLASSES[c]}]")
            elif c in "DWS" and not inside:
                out.append(f"[^{CLASSES[c.lower()]}]")
            elif c == "/":
                out.append("/")
            else:
                out.append("\\" + c)
            at += 2
            continue
        if inside:
            inside = c != "]"
            out.append("\\[" if c == "[" else c)
        elif c == "[":
            inside = True
            out.append(c)
        else:
            out.append({"$": r"\Z", ".": "[^\\n\\r\u2028\u2029]"}.get(c, c))
        at += 1
    return "".join(out)


def check_pattern(validator, pattern, instance, schema):
    if validator.is_type(instance, "string") and not re.search(python_pattern(pattern), instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def check_pattern_properties(validator, patterns, instance, schema):
    if not validator.is_type(instance, "object"):
        return
    for pattern, subschema in patterns.items():
        for key, value in instance.items():
            if re.search(python_pattern(pattern), key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def check_additional(validator, additional, instance, schema):
    if not validator.is_type(instance, "object"):
        return
    patterns = [python_pattern(pattern) for pattern in schema.get("patternProperties", {})]
    for key, value in instance.items():
        if key not in schema.get("properties", {}) and not any(re.search(pattern, key) for pattern in patterns):
            if additional is False:
                yield jsonschema.ValidationError(f"{key!r} is one property too many")
            else:
                yield from validator.descend(value, additional, path=key)


def extended(base):
    checker = base.TYPE_CHECKER.redefine_many({"number": is_number, "integer": is_integer})
    return validators.extend(
        base,
        {
            "pattern": check_pattern,
            "patternProperties": check_pattern_properties,
            "additionalProperties": check_additional,
        },
        type_checker=checker,
    )


FORMATS = FormatChecker()
USUAL_TIME = FORMATS.checkers["date-time"][0]


@FORMATS.checks("date-time")
def is_date_time(value):
    leap = isinstance(value, str) and re.fullmatch(r"(.{11})(\d\d):(\d\d):60(\.\d+)?([Zz]|([+-])(\d\d):(\d\d))", value)
    if not leap:
        return USUAL_TIME(value)
    day, hour, minute, _, zone, sign, hours, minutes = leap.groups()
    offset = (int(hours) * 60 + int(minutes)) * (1 if sign == "+" else -1) if sign else 0
    is_last = (int(hour) * 60 + int(minute) - offset) % 1440 == 1439
    return is_last and USUAL_TIME(f"{day}{hour}:{minute}:59{zone}")


DRAFTS = {name: extended(base) for name, base in [("4", Draft4Validator), ("7", Draft7Validator), ("2020-12", Draft202012Validator)]}


def walk(schema):
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from walk(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from walk(value)


def draft_of(schema):
    for part in walk(schema):
        if isinstance(part.get("exclusiveMinimum"), bool) or isinstance(part.get("exclusiveMaximum"), bool):
            return "4"
    for part in walk(schema):
        if isinstance(part.get("items"), list):
            return "7"
    return "2020-12"


def validate(entry, counts):
    schema = json.loads(entry["schema"], parse_float=number)
    draft = draft_of(schema)
    counts["schemas read as draft " + draft] += 1
    schema = {key: value for key, value in schema.items() if key not in ("$schema", "id", "$id")}
    validator = DRAFTS[draft](schema, format_checker=FORMATS)
    bad = 0
    for text in entry["texts"]:
        instance = json.loads(text, parse_float=number)
        error = next(iter(validator.iter_errors(instance)), None)
        counts["texts invalid" if error else "texts valid"] += 1
        if error:
            bad += 1
            print(f"INVALID {entry['name']}: {text[:400]}\n  {error.message[:300]} at {list(error.absolute_path)}")
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vocabulary")
    parser.add_argument("--schemas", default="../shared/fixtures/json-schema/real-world.jsonl")
    parser.add_argument("--texts", default="5")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--kigo", default="build/kigo")
    options = parser.parse_args()
    command = [options.kigo, "scripts/check_schemas.lua", "write", options.vocabulary, options.schemas, options.texts, options.seed]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    counts, slow, total, compiled = collections.Counter(), [], 0, 0
    for line in process.stdout:
        entry = json.loads(line)
        total += 1
        slow.append((entry["ms"], entry["bytes"], entry["name"]))
        if "refused" in entry:
            print(f"refused {entry['name']}: {entry['refused']} ({entry['code']})")
            continue
        compiled += 1
        counts["texts that came to no end"] += entry["unfinished"]
        validate(entry, counts)
    if process.wait() != 0:
        sys.exit("kigo failed")
    ms, size = max(slow), max(slow, key=lambda one: one[1])
    print(f"{compiled} of {total} compiled; slowest {ms[0]:.1f} ms ({ms[2]}), largest {size[1] / 2**20:.1f} MiB ({size[2]})")
    for name, n in sorted(counts.items()):
        print(f"{n} {name}")
    good = compiled >= 0.85 * total and ms[0] <= LIMIT_MS and size[1] <= LIMIT_BYTES and not counts["texts invalid"]
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
