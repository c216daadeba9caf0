#!/usr/bin/env python3
"""Random templates with what Python's jinja2 renders from them, one JSON object a line.

    python3 -m venv v && v/bin/pip install jinja2
    v/bin/python scripts/check_jinja.py --cases 5000 --seed 1 > cases.json
    KIGO_JINJA_CASES=cases.json build/kigo /usr/bin/busted spec/jinja_spec.lua

The environment is that of the template fixtures. The first line holds the variables, every other one
{"template", "expected" or "error"}. What kigo does otherwise on purpose stands in the head of
lua/kigo/template/jinja/init.lua; most cases about it are left out, and so are addresses of Python objects.
"""

import argparse
import datetime
import json
import random
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

NOW = datetime.datetime(2026, 7, 29, 10, 29, 0)


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_run"), [], [], body).set_lineno(line)

    def _run(self, caller):
        return caller()


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def kind_of(error):
    if isinstance(error, RecursionError):
        return "recursion"
    if isinstance(error, jinja2.exceptions.SecurityError):
        return "security"
    if isinstance(error, jinja2.exceptions.UndefinedError):
        return "undefined"
    if isinstance(error, (jinja2.exceptions.TemplateSyntaxError, SyntaxError)):
        return "syntax"
    if isinstance(error, TypeError):
        return "type"
    return "raise" if type(error) is jinja2.exceptions.TemplateError else "other"


CONTEXT = {
    "s": "Hello, World",
    "u": "Grüße — 世界 ß ﬁ 🙂",
    "e": "",
    "w": "  some  words\tand\nlines \n",
    "q": 'it\'s "q" \\ \n',
    "n": 7,
    "z": 0,
    "m": -3,
    "f": 2.5,
    "g": -0.1,
    "h": 1e16,
    "yes": True,
    "no": False,
    "nil": None,
    "l": [3, 1, 2],
    "ls": ["b", "A", "c", "a"],
    "el": [],
    "ll": [[1, 2], [3], []],
    "ld": [{"k": "x", "v": 2, "on": True}, {"k": "Y", "v": 1, "on": False}, {"k": "x", "v": 3}],
    "d": {"b": 1, "a": "two", "C": None, "items": [1]},
    "ed": {},
    "tree": [{"t": "1", "c": [{"t": "2", "c": []}, {"t": "3", "c": [{"t": "4", "c": []}]}]}, {"t": "5", "c": []}],
    "msgs": [
        {"role": "system", "content": "Be <b>brief</b>."},
        {"role": "user", "content": "2 < 3 & 'x'"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"a": [1.0, True, None]}}]},
    ],
}

STR_METHODS = [
    "upper()",
    "lower()",
    "title()",
    "capitalize()",
    "strip()",
    "lstrip()",
    "rstrip()",
    "swapcase()",
    "strip('Hd ')",
    "lstrip(' \\n')",
    "replace('l', 'LL')",
    "replace('', '-')",
    "replace('o', '', 1)",
    "zfill(14)",
    "center(20)",
    "center(17, '*')",
    "ljust(15, '.')",
    "rjust(15)",
    "removeprefix('He')",
    "removesuffix('ld')",
    "casefold()",
    "expandtabs(4)",
    "join(ls)",
    "format(1, x=2)",
]
STR_TO_LIST = [
    "split()",
    "split(' ')",
    "split('l', 1)",
    "rsplit('o', 1)",
    "rsplit(None, 1)",
    "splitlines()",
    "splitlines(True)",
    "partition(',')",
    "rpartition('o')",
    "split(None, 2)",
]
STR_TO_INT = ["find('o')", "rfind('o')", "count('l')", "index('H')", "find('o', 5)", "find('l', 2, -1)", "count('')"]
STR_TO_BOOL = [
    "startswith('He')",
    "endswith('ld')",
    "startswith(('x', 'H'))",
    "isdigit()",
    "isalpha()",
    "isspace()",
    "isupper()",
    "islower()",
    "istitle()",
    "isalnum()",
    "isascii()",
    "isidentifier()",
    "startswith('l', 2)",
    "endswith('o', 0, 5)",
    "isnumeric()",
    "isdecimal()",
    "isprintable()",
]
STR_FILTERS = [
    "upper",
    "lower",
    "title",
    "capitalize",
    "trim",
    "trim('Hd')",
    "replace('l', 'L')",
    "replace('l', 'L', 1)",
    "indent",
    "indent(2)",
    "indent(2, true)",
    "indent('> ', true, true)",
    "center(30)",
    "string",
    "reverse",
    "truncate(8)",
    "truncate(8, true)",
    "truncate(9, false, '…', 0)",
    "wordwrap(7)",
    "wordwrap(5, false)",
    "wordwrap(10, true, '|')",
    "urlencode",
    "striptags",
    "default('dflt')",
    "d('dflt', true)",
    "first",
    "last",
    "join('-')",
    "tojson",
    "format('x')",
    "list|join('.')",
]
LIST_FILTERS = [
    "list",
    "sort",
    "sort(true)",
    "sort(reverse=true, case_sensitive=true)",
    "reverse|list",
    "unique|list",
    "map('string')|list",
    "map('upper')|list",
    "select|list",
    "reject|list",
    "select('string')|list",
    "select('odd')|list",
    "reject('none')|list",
    "batch(2)|list",
    "batch(2, 'x')|list",
    "slice(2)|list",
    "slice(3, 'f')|list",
    "map('default', 'x')|list",
    "map(attribute='k')|list",
    "map(attribute='v', default=0)|list",
    "selectattr('on')|list",
    "rejectattr('on')|list",
    "selectattr('v', 'gt', 1)|list",
    "selectattr('k', 'equalto', 'x')|list",
    "selectattr('on', 'defined')|list",
    "sort(attribute='v')",
    "sort(attribute='k,v')",
    "groupby('k')",
    "groupby('v')|map('list')|list",
    "unique(attribute='k')|list",
    "map('length')|list",
    "map('first')|list",
    "sort(attribute='v', reverse=true)",
    "select('in', [1, 'a'])|list",
    "map('replace', 'a', 'o')|list",
    "map('int')|list",
    "map('round')|list",
]
LIST_TO_ANY = [
    "first",
    "last",
    "min",
    "max",
    "length",
    "count",
    "sum",
    "join",
    "join(', ')",
    "tojson",
    "string",
    "sum(attribute='v')",
    "max(attribute='v')",
    "min(attribute='k')",
    "join('|', attribute='k')",
    "sum(start=10)",
    "tojson(indent=2)",
]
DICT_FILTERS = [
    "dictsort",
    "dictsort(true)",
    "dictsort(false, 'value')",
    "dictsort(reverse=true)",
    "items|list",
    "list",
    "length",
    "tojson",
    "tojson(indent=2)",
    "tojson(sort_keys=true)",
    "tojson(separators=(',', ':'))",
    "string",
    "xmlattr",
    "first",
    "map('upper')|list",
    "urlencode",
    "tojson(indent=4, ensure_ascii=true)",
]
NUM_FILTERS = [
    "abs",
    "round",
    "round(1)",
    "round(1, 'floor')",
    "round(0, 'ceil')",
    "int",
    "float",
    "string",
    "tojson",
    "filesizeformat",
    "default(1)",
    "round(2)",
    "round(-1)",
]
TESTS = [
    "defined",
    "undefined",
    "none",
    "string",
    "mapping",
    "iterable",
    "sequence",
    "number",
    "integer",
    "float",
    "boolean",
    "true",
    "false",
    "odd",
    "even",
    "divisibleby 3",
    "divisibleby(2)",
    "equalto 7",
    "eq 'x'",
    "== 1",
    "in [1, 2, 'a']",
    "in ls",
    "lower",
    "upper",
    "sameas none",
    "sameas true",
    "callable",
    "gt 2",
    "lt 2",
    "ge 2",
    "le 2",
    "ne 2",
    "filter",
    "test",
    "escaped",
]
FORMATS = [
    "'%s|%5s|%-5s' % (s, n, m)",
    "'%d %05d %+d' % (n, m, n)",
    "'%.2f %e %g' % (f, f, g)",
    "'%x %X %o %#x' % (n, 255, 8, 255)",
    "'%r' % s",
    "'%(a)s-%(b)s' % d",
    "'%s' % n",
    "'%5.1f|%-8.3f|' % (f, g)",
    "'%c%c' % (65, 'b')",
    "'%%' % ()",
    "'%s' % l",
    "'%s %s' % (n,)",
    "'%d' % f",
    "'%s' % nil",
    "'{} {}'.format(n, s)",
    "'{1}{0}'.format(s, n)",
    "'{:>8}|{:<8}|{:^8}'.format(n, s, f)",
    "'{:05d}|{:+.2f}|{:,}'.format(n, f, 1234567)",
    "'{a}{b!r}'.format(a=1, b=s)",
    "'{0[0]}{1.k}'.format(l, ld[0])",
    "'{:*^9}{{}}'.format(s[:3])",
    "'{:x}{:#b}{:%}'.format(255, 5, f)",
    "'{:.3}'.format(s)",
    "'{:{w}}|'.format(n, w=5)",
    "'{}'.format(nil)",
    "'{:e}|{:g}|{:.1%}'.format(f, h, g)",
    "s|format",
    "'%s, %s'|format(n, s)",
    "'%(x)s'|format(x=f)",
]
NUMBERS = ["0", "1", "2", "7", "-1", "10", "3.5", "0.1", "1e3", "1_000", "0x1f", "1.0", "2.50", "1e-7", "100000.0"]
STRINGS = ["''", "'a'", '"b c"', "'\\n'", "'\\'q\\''", "'é\\u00e9\\x41'", "'a' 'b'", "'<|im_end|>'", "'\\\\d'", "'%'"]


class Writer:
    def __init__(self, dice):
        self.dice = dice
        self.depth = 0
        self.names = []

    def pick(self, options):
        return self.dice.choice(options)

    def once_in(self, n):
        return self.dice.randrange(n) == 0

    # ---- expressions by type ----

    def any(self):
        if self.depth > 4:
            return self.pick([self.pick(NUMBERS), self.pick(STRINGS), self.pick(list(CONTEXT)), "missing"])
        self.depth += 1
        made = self.pick(
            [self.text, self.text, self.number, self.number, self.list, self.dict, self.truth, self.choice, self.odd]
        )()
        self.depth -= 1
        return made

    def inner(self, make):
        """A part of an expression: of the right type nearly always."""
        if self.depth > 4:
            return {"text": "s", "number": "n", "list": "l", "dict": "d", "truth": "yes", "any": "n"}[make.__name__]
        self.depth += 1
        made = self.any() if self.once_in(40) else make()
        self.depth -= 1
        return made

    def text(self):
        x = lambda: self.inner(self.text)
        kind = self.dice.randrange(12)
        if kind < 2:
            return self.pick(["s", "u", "e", "w", "q"] + STRINGS)
        if kind == 2:
            return f"({x()})|{self.pick(STR_FILTERS)}"
        if kind == 3:
            return f"({x()}).{self.pick(STR_METHODS)}"
        if kind == 4:
            return f"({x()} + {x()})"
        if kind == 5:
            return f"({self.any()} ~ {x()})"
        if kind == 6:
            return f"({x()})[{self.slice()}]"
        if kind == 7:
            return self.pick(FORMATS)
        if kind == 8:
            return f"({self.inner(self.list)})|join({self.pick(STRINGS)})"
        if kind == 9:
            return self.pick(["ld[0].k", "msgs[1]['content']", "msgs|map(attribute='role')|join(',')", "d.a", "ls[0]"])
        if kind == 10:
            return f"({x()} * {self.pick(['0', '2', '3', 'n', 'm'])})"
        return f"({self.pick(['missing', 'nil', 'e', 's'])})|default({x()}{self.pick(['', ', true'])})"

    def slice(self):
        part = lambda: self.pick(["", "", "0", "1", "-1", "2", "-3", "5", "100", "-100", "n", "m", "nil"])
        return self.pick([f"{part()}:{part()}", f"{part()}:{part()}:{self.pick(['', '1', '2', '-1', '-2'])}"])

    def number(self):
        x = lambda: self.inner(self.number)
        kind = self.dice.randrange(9)
        if kind < 2:
            return self.pick(["n", "z", "m", "f", "g", "h"] + NUMBERS)
        if kind == 2:
            return f"({x()} {self.pick(['+', '-', '*', '/', '//', '%'])} {x()})"
        if kind == 3:
            return f"({self.inner(self.text)}).{self.pick(STR_TO_INT)}"
        if kind == 4:
            return f"({x()})|{self.pick(NUM_FILTERS)}"
        if kind == 5:
            return f"({self.inner(self.pick([self.list, self.text, self.dict]))})|length"
        if kind == 6:
            return f"({self.pick(['2', '3', 'n', 'f', '10'])} ** {self.pick(['0', '1', '2', '3', '-1', '0.5'])})"
        if kind == 7:
            return f"-{x()}"
        return f"({self.inner(self.text)})|{self.pick(['int', 'float', 'int(5)', 'float(1.5)', 'wordcount', 'int(base=16)'])}"

    def list(self):
        x = lambda: self.inner(self.list)
        kind = self.dice.randrange(10)
        if kind < 3:
            return self.pick(["l", "ls", "el", "ll", "ld", "msgs"])
        if kind == 3:
            items = ", ".join(self.inner(self.any) for _ in range(self.dice.randrange(4)))
            return f"[{items}]"
        if kind == 4:
            return f"({x()})|{self.pick(LIST_FILTERS)}"
        if kind == 5:
            return f"({x()})[{self.slice()}]"
        if kind == 6:
            return f"({self.inner(self.text)}).{self.pick(STR_TO_LIST)}"
        if kind == 7:
            return f"range({self.pick(['3', '1, 4', '5, 0, -2', 'n', '0'])}){self.pick(['', '|list', '[1:]', '|map(attribute=0)|list'])}"
        if kind == 8:
            return f"({x()} {self.pick(['+ l', '+ [1]', '* 2', '+ ls'])})"
        return f"({self.inner(self.dict)}){self.pick(['.keys()|list', '.values()|list', '.items()|list', '|dictsort', '|list', '|items|list'])}"

    def dict(self):
        kind = self.dice.randrange(5)
        if kind < 2:
            return self.pick(["d", "ed", "ld[0]", "msgs[0]", "msgs[2].tool_calls[0]"])
        if kind == 2:
            pairs = ", ".join(
                f"{self.pick(STRINGS + ['1', 'n', '(1, 2)', 'true', '1.0'])}: {self.inner(self.any)}"
                for _ in range(self.dice.randrange(4))
            )
            return "{" + pairs + "}"
        if kind == 3:
            return self.pick(["dict(a=n, b=s)", "dict(d, z=1)", "dict(ls|map('list')|list)", "dict([('x', 1)])"])
        return "d.copy()"

    def truth(self):
        kind = self.dice.randrange(9)
        if kind == 0:
            return self.pick(["yes", "no", "true", "False", "nil", "missing"])
        if kind == 1:
            return f"({self.any()}) is {self.pick(['', 'not '])}{self.pick(TESTS)}"
        if kind == 2:
            return f"({self.inner(self.number)} {self.compare()} {self.inner(self.number)})"
        if kind == 3:
            return f"({self.inner(self.text)} {self.compare()} {self.inner(self.text)})"
        if kind == 4:
            return f"({self.inner(self.truth)} {self.pick(['and', 'or'])} {self.any()})"
        if kind == 5:
            return f"(not {self.any()})"
        if kind == 6:
            return f"({self.any()} {self.pick(['in', 'not in'])} {self.inner(self.pick([self.list, self.dict, self.text]))})"
        if kind == 7:
            return f"({self.inner(self.text)}).{self.pick(STR_TO_BOOL)}"
        return f"(1 < {self.inner(self.number)} <= 5)"

    def compare(self):
        return self.pick(["==", "!=", "<", "<=", ">", ">="])

    def choice(self):
        return f"({self.any()} if {self.inner(self.truth)}{self.pick(['', ' else ' + self.any()])})"

    def odd(self):
        """What goes wrong, or nearly."""
        return self.pick(
            [
                "missing",
                "missing.x",
                "d.nope",
                "d['nope']",
                "d.items()|list",
                "d.get('a')",
                "d.get('q', 9)",
                "l[9]",
                "l.append(1)",
                "d.update({})",
                "s.__class__",
                "nil.x",
                "nil[0]",
                "n()",
                "s.nope()",
                "(1, 2)",
                "(1,)",
                "()",
                "1, 2",
                f"({self.inner(self.list)})|{self.pick(LIST_TO_ANY)}",
                f"({self.inner(self.dict)})|{self.pick(DICT_FILTERS)}",
                "namespace(a=1)",
                "ld[1].on",
                "undefined_function(1)",
                "[missing]",
                "{'k': missing}|string",
                "s[n]",
                "s[-1]",
                "u[2]",
                "u|length",
                "u[::-1]",
                "u.upper()",
                "u|title",
                "[1.0, 2, 'x', none, true]",
                "[u, q, '\\t']",
                "{'a': {'b': [1]}}",
                "msgs|tojson",
                "msgs|tojson(indent=2)",
                "u|tojson(ensure_ascii=true)",
                "[1e16, 1e15, 0.00001, 123456789.123]",
                "strftime_now('%d %B %Y, %H:%M:%S %a %j %p %I %y %m %b %A %%')",
                "raise_exception('bad: ' ~ n)",
                "loop.index",
                "cycler('a', 'b').next()",
                "joiner('x')()",
                "(s|attr('upper'))()",
                "'a' in missing",
                "missing == missing2",
                "missing if false",
                "ls|map('nope')|list",
                "ls|select('nope')|list",
                "true + 1",
                "'x' in 'xyz'",
                "1 in 'abc'",
                "none in l",
                "[1, [2, (3, {'a': 4})]]",
                "'\\u00ad\\u200b' ~ [ '\\u00ad' ]",
                "(l, d)|tojson",
                "1 if missing else 2",
            ]
        )

    # ---- templates ----

    def open(self, mark="%"):
        return "{" + mark + self.pick(["", "", "", "-", "+"]) + " "

    def close(self, mark="%"):
        return " " + self.pick(["", "", "", "-"] + (["+"] if mark == "%" else [])) + mark + "}"

    def tag(self, body):
        return self.open() + body + self.close()

    def output(self):
        expression = f"({self.any()})|e" if self.once_in(15) else self.any()
        return "{{" + self.pick(["", "", "-"]) + " " + expression + " " + self.pick(["", "", "-"]) + "}}"

    def space(self):
        return self.pick(
            ["", "", "", " ", "\n", "\n  ", "  \n", "\n\n", "\t", "text", "text\n", " a b ", "{ }", "\u00a0", "%}"]
        )

    def block(self, n=3):
        self.depth_of_blocks = getattr(self, "depth_of_blocks", 0) + 1
        parts = [self.space()]
        for _ in range(self.dice.randrange(1, n + 1)):
            parts += [self.statement(), self.space()]
        self.depth_of_blocks -= 1
        return "".join(parts)

    def statement(self):
        if getattr(self, "depth_of_blocks", 0) > 2:
            return self.output()
        kind = self.dice.randrange(17)
        if kind < 5:
            return self.output()
        if kind == 5:
            return self.tag(f"set {self.pick(['x', 'y', 's2'])} = {self.any()}") + self.space() + "{{ x }}{{ y }}"
        if kind < 8:
            other = self.pick(
                ["", self.tag("else") + self.block(), self.tag(f"elif {self.inner(self.truth)}") + self.block()]
            )
            return self.tag(f"if {self.inner(self.truth)}") + self.block() + other + self.tag("endif")
        if kind < 11:
            return self.loop()
        if kind == 11:
            return "{#" + self.pick(["", "-"]) + " comment {{ x }} " + self.pick(["", "-"]) + "#}"
        if kind == 12:
            return self.tag("raw") + self.pick(["{{ raw }}", " {% if %} ", "\n x \n"]) + self.tag("endraw")
        if kind == 13:
            name = self.pick(["p", "r"])
            body = (
                self.tag(f"macro {name}(a, b='dflt', c=n)")
                + self.pick(
                    [
                        "{{ a }}{{ b }}{{ c }}",
                        "{{ varargs }}{{ kwargs }}{{ a }}",
                        "{{ caller() }}{{ a }}",
                        self.block(2),
                    ]
                )
                + self.tag("endmacro")
            )
            call = self.pick(
                [
                    f"{{{{ {name}({self.any()}) }}}}",
                    f"{{{{ {name}(1, b={self.any()}) }}}}",
                    f"{{{{ {name}(1, 2, 3, 4) }}}}",
                    f"{{{{ {name}(z=1) }}}}",
                    self.tag(f"call {name}(1)") + self.block(2) + self.tag("endcall"),
                ]
            )
            return body + self.space() + call
        if kind == 14:
            return (
                self.tag(f"filter {self.pick(['upper', 'trim', 'indent(2)', 'replace(1, 2)|upper'])}")
                + self.block(2)
                + self.tag("endfilter")
            )
        if kind == 15:
            name = self.pick(["x", "y"])
            return (
                self.tag(f"set {name}{self.pick(['', ' | upper', ' | trim'])}")
                + self.block(2)
                + self.tag("endset")
                + "[{{ "
                + name
                + " }}]"
            )
        return self.pick(
            [
                self.tag(f"with x = {self.any()}, y = 1") + self.block(2) + self.tag("endwith"),
                self.tag("generation") + self.block(2) + self.tag("endgeneration"),
                self.tag("set ns = namespace(v=0)")
                + self.tag("for i in l")
                + self.tag("set ns.v = ns.v + i")
                + self.tag("endfor")
                + "{{ ns.v }}",
                self.tag(f"set a, b = {self.pick(['1, 2', 'l', '(s, n)', 'ls[:2]'])}") + "{{ a }}{{ b }}",
                self.tag(f"print {self.any()}, {self.any()}") if False else self.output(),
                self.tag("for i in tree recursive")
                + "{{ i.t }}{{ loop.depth }}"
                + self.pick(["", "{{ loop.last }}"])
                + "{{ loop(i.c) }}"
                + self.tag("endfor"),
            ]
        )

    def loop(self):
        loop_parts = [
            "{{ loop.index }}",
            "{{ loop.index0 }}{{ loop.first }}{{ loop.last }}",
            "{{ loop.length }}",
            "{{ loop.revindex }}{{ loop.revindex0 }}",
            "{{ loop.previtem }}|{{ loop.nextitem }}",
            "{{ loop.cycle('a', 'b') }}",
            "{{ loop.changed(i) }}",
            "{{ i }}",
            "{{ i.k }}",
            "{{ loop }}",
            self.tag("if loop.index is odd") + self.tag("continue") + self.tag("endif"),
            self.tag("if loop.index > 2") + self.tag("break") + self.tag("endif"),
            self.tag("set x = i") + "{{ x }}",
            self.tag("if not loop.first") + ", " + self.tag("endif"),
        ]
        body = self.space() + "".join(self.pick(loop_parts) + self.space() for _ in range(self.dice.randrange(1, 4)))
        if self.once_in(3):
            body += self.block(2)
        head = self.pick(
            [
                f"for i in {self.inner(self.list)}",
                f"for i in {self.inner(self.list)}",
                f"for i in {self.inner(self.list)} if {self.pick(['i', 'i is string', 'i != 1', 'i in l'])}",
                f"for k, i in {self.inner(self.dict)}.items()",
                f"for i in {self.inner(self.text)}",
                f"for i in {self.any()}",
                "for k, i in d|dictsort",
                "for a, i in ll",
            ]
        )
        other = self.pick(["", "", self.tag("else") + "none"])
        return self.tag(head) + body + other + self.tag("endfor") + self.pick(["", "{{ i }}{{ x }}"])

    def template(self):
        return self.block(3) + self.pick(["", "\n", "\n\n"])


# Addresses, methods as values, complex numbers.
UNMATCHED = [" object at 0x", "<built-in", "<bound method", "<function", "j)"]


def cases(count, seed, longest):
    env = environment()
    made = 0
    number = 0
    while made < count:
        number += 1
        source = Writer(random.Random(seed * 1000003 + number)).template()
        case = {"template": source}
        try:
            case["expected"] = env.from_string(source).render(**CONTEXT)
        except Exception as error:  # every kind is a result
            case["error"] = kind_of(error)
            case["detail"] = f"{type(error).__name__}: {error}"[:160]
        text = case.get("expected", "")
        if len(source) > longest or len(text) > 2000 or any(mark in text.lower() for mark in UNMATCHED):
            continue
        made += 1
        yield case


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=int, default=700, help="characters of a template")
    arguments = parser.parse_args()
    print(json.dumps(CONTEXT, ensure_ascii=False))
    for case in cases(arguments.cases, arguments.seed, arguments.longest):
        sys.stdout.write(json.dumps(case, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
