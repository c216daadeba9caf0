"""Validate with jsonschema what kigo writes by chance under the masks of schemas of the real world.

usage: check_schemas.py VOCAB.gguf [--schemas FILE.jsonl] [--texts 5] [--seed 1] [--random N] [--kigo build/kigo]
Needs jsonschema (a development tool, never a dependency):
  python3 -m venv peer && peer/bin/pip install 'jsonschema[format]'
  peer/bin/python scripts/check_schemas.py ../shared/fixtures/vocab/qwen2.gguf
Every schema is read as draft 2020-12, with format checks. Differences of the validator, made up for here: numbers are
decimals (it divides doubles), patterns are ECMA 262's (it takes Python's), and where a schema uses the older forms of keywords
(items as a list, exclusiveMinimum as a boolean) it is read as the draft that has them; leap seconds are checked here, because
its checker knows none.
With --random: random schemas with random values, judged by both. Exit status 1 where they differ, a text is invalid, a schema takes more than 250 ms or 64 MiB, or fewer than 85 of 100 compile.
"""

import argparse
import collections
import decimal
import json
import math
import random
import re
import subprocess
import sys
import tempfile

import jsonschema
from jsonschema import Draft4Validator, Draft7Validator, Draft202012Validator, FormatChecker, validators

LIMIT_MS, LIMIT_BYTES = 250, 64 << 20


def number(text):
    try:
        return decimal.Decimal(text)
    except decimal.InvalidOperation:  # an exponent of twenty digits
        return float(text)


def is_number(checker, value):
    return isinstance(value, (int, float, decimal.Decimal)) and not isinstance(value, bool)


def is_integer(checker, value):
    return is_number(checker, value) and math.isfinite(value) and value == int(value)


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


def measure(options):
    """How long each schema takes to compile and how much memory, in a process of its own."""
    most = {"ms": (0, ""), "bytes": (0, "")}
    with open(options.schemas) as file, tempfile.NamedTemporaryFile("w") as one:
        for line in file:
            entry = json.loads(line)
            one.seek(0)
            one.truncate()
            json.dump(entry["schema"], one)
            one.flush()
            command = [options.kigo, "scripts/check_schemas.lua", "measure", one.name]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            for name in most:
                most[name] = max(most[name], (found[name], entry["name"]))
    print(f"slowest {most['ms'][0]:.1f} ms ({most['ms'][1]}), largest {most['bytes'][0] / 2**20:.1f} MiB ({most['bytes'][1]})")
    return most["ms"][0] <= LIMIT_MS and most["bytes"][0] <= LIMIT_BYTES


def texts_by_chance(options):
    command = [options.kigo, "scripts/check_schemas.lua", "write", options.vocabulary, options.schemas, options.texts, options.seed]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    counts, total, compiled = collections.Counter(), 0, 0
    for line in process.stdout:
        entry = json.loads(line)
        total += 1
        if "refused" in entry:
            print(f"refused {entry['name']}: {entry['refused']} ({entry['code']})")
            continue
        compiled += 1
        counts["texts that came to no end"] += entry["unfinished"]
        validate(entry, counts)
    if process.wait() != 0:
        sys.exit("kigo failed")
    print(f"{compiled} of {total} compiled")
    for name, n in sorted(counts.items()):
        print(f"{n} {name}")
    return compiled >= 0.85 * total and not counts["texts invalid"]


# ---- random schemas and values ----

NAMES = ["a", "b", "c", "ab"]
PATTERNS = ["^a", "b$", "^.$", "a.*b", "c"]
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object", ["object", "null"], ["array", "integer"]]
INNER = ["items", "contains", "additionalProperties", "not", "propertyNames", "unevaluatedProperties", "unevaluatedItems"]
LISTS = ["prefixItems", "anyOf", "oneOf", "allOf"]
MAPS = {"properties": NAMES, "patternProperties": PATTERNS, "dependentSchemas": NAMES}
BOUNDS = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]
COUNTS = ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"]
OTHERS = ["type", "enum", "const", "multipleOf", "pattern", "required", "dependentRequired", "if", "$ref", "uniqueItems"]


def random_value(r, depth):
    kind = r.random()
    if depth == 0 or kind < 0.45:
        return r.choice([None, True, False, 0, 1, 2, 3, -1, 1.5, 2.0, 10, "", "a", "ab", "abc", "b"])
    if kind < 0.7:
        return [random_value(r, depth - 1) for _ in range(r.randint(0, 3))]
    return {key: random_value(r, depth - 1) for key in r.sample(NAMES, r.randint(0, 3))}


def random_keyword(r, key, schema, depth):
    if key == "type":
        schema[key] = r.choice(TYPES)
    elif key in ("enum", "const"):
        values = [random_value(r, 1) for _ in range(r.randint(1, 4))]
        schema[key] = values if key == "enum" else values[0]
    elif key in BOUNDS:
        schema[key] = r.choice([0, 1, 2, 1.5, -1, 10])
    elif key in COUNTS:
        schema[key] = r.randint(0, 3)
    elif key == "multipleOf":
        schema[key] = r.choice([1, 2, 3, 0.5, 1.5, 7])
    elif key == "pattern":
        schema[key] = r.choice(PATTERNS)
    elif key in INNER:
        schema[key] = random_schema(r, depth - 1)
        if key == "contains" and r.random() < 0.5:
            schema[r.choice(["minContains", "maxContains"])] = r.randint(0, 2)
    elif key in LISTS:
        schema[key] = [random_schema(r, depth - 1) for _ in range(r.randint(1, 3))]
    elif key in MAPS:
        schema[key] = {name: random_schema(r, depth - 1) for name in r.sample(MAPS[key], r.randint(1, 3))}
    elif key == "required":
        schema[key] = r.sample(NAMES, r.randint(1, 2))
    elif key == "dependentRequired":
        schema[key] = {r.choice(NAMES): r.sample(NAMES, r.randint(0, 2))}
    elif key == "if":
        for part in ["if", "then", "else"]:
            schema[part] = random_schema(r, depth - 1)
    elif key == "$ref":
        schema[key] = r.choice(["#/$defs/x", "#/$defs/y"])
    else:
        schema[key] = r.random() < 0.7


def random_schema(r, depth):
    if depth < 0 or (depth == 0 and r.random() < 0.3):
        return r.random() < 0.7
    schema = {}
    for _ in range(r.choice([1, 1, 2, 2, 3])):
        key = r.choice(OTHERS + BOUNDS + COUNTS + INNER + LISTS + list(MAPS) + ["properties", "type"])
        random_keyword(r, key, schema, depth)
    return schema


def random_case(r):
    schema = {"allOf": [random_schema(r, 2)], "$defs": {"x": random_schema(r, 1), "y": random_schema(r, 1)}}
    texts = [json.dumps(random_value(r, 2)) for _ in range(25)]
    validator = DRAFTS["2020-12"](json.loads(json.dumps(schema), parse_float=number))
    valid = [validator.is_valid(json.loads(text, parse_float=number)) for text in texts]
    return {"schema": json.dumps(schema), "texts": texts, "valid": valid}


def random_schemas(options):
    r, counts, cases = random.Random(options.seed), collections.Counter(), []
    while len(cases) < options.random:
        try:
            cases.append(random_case(r))
        except BaseException as error:  # a $ref that leads back to itself; jsonschema's helpers panic there
            if not isinstance(error, RecursionError) and type(error).__name__ != "PanicException":
                raise
            counts["references in circles"] += 1
    with tempfile.NamedTemporaryFile("w") as file:
        for case in cases:
            file.write(json.dumps(case) + "\n")
        file.flush()
        command = [options.kigo, "scripts/check_schemas.lua", "judge", file.name]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    for case, line in zip(cases, lines):
        answer = json.loads(line)
        counts["schemas refused" if "refused" in answer else "schemas compiled"] += 1
        for text, valid, accepted in zip(case["texts"], case["valid"], answer.get("accepted", [])):
            which = "wrong" if valid != accepted else "accepted" if accepted else "rejected"
            counts["values " + which] += 1
            if which == "wrong":
                print(f"WRONG {case['schema']}: {text} is {'valid' if valid else 'invalid'}")
    for name, n in sorted(counts.items()):
        print(f"{n} {name}")
    return not counts["values wrong"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vocabulary")
    parser.add_argument("--schemas", default="../shared/fixtures/json-schema/real-world.jsonl")
    parser.add_argument("--texts", default="5")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--random", type=int, default=0, help="so many random schemas with 25 values each instead")
    parser.add_argument("--kigo", default="build/kigo")
    options = parser.parse_args()
    if options.random:
        sys.exit(0 if random_schemas(options) else 1)
    within = measure(options)
    sys.exit(0 if texts_by_chance(options) and within else 1)


if __name__ == "__main__":
    main()
