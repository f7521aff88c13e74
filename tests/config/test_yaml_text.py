"""YAML as config authors expect it: numbers are numbers, surprises are errors with line and column."""

import math
import random

import pytest
import yaml

from hybridtron.config import yaml_text
from hybridtron.config.yaml_text import parse, read, write
from hybridtron.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("3E4", 3e4),
        ("1.5e9", 1.5e9),
        ("3.0e-04", 3e-4),
        (".5", 0.5),
        ("2.", 2.0),
        ("-.inf", -math.inf),
        ("16", 16),
        ("-3", -3),
        ("1_000_000", 1_000_000),
        ("0x10", 16),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("", None),
        ("null", None),
        ("~", None),
        ("'1'", "1"),
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("4*attn 5*mlp | 2*attn", "4*attn 5*mlp | 2*attn"),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("{a: &x {n: 1, m: 2}, b: {<<: *x, m: 3}}", {"a": {"n": 1, "m": 2}, "b": {"n": 1, "m": 3}}),
    ],
)
def test_values(text, value):
    found = parse(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1}\na: 2\n", "x.yaml:3:1: duplicate key 'a' (first on line 1)"),
        ("a: 1\nb: {c: 1, c: 2}", "x.yaml:2:11: duplicate key 'c' (first on line 2)"),
        ("a: [1,\n", "x.yaml:2:1: not valid YAML: while parsing a flow node, expected the node content"),
        ("a:\n\t- b", "x.yaml:2:1: not valid YAML: while scanning for the next token, found character '\\t'"),
        ("a: b: c", "x.yaml:1:5: not valid YAML: mapping values are not allowed here"),
        ('a: "b', "x.yaml:1:6: not valid YAML: while scanning a quoted scalar, found unexpected end of stream"),
        ("a: *b", "x.yaml:1:4: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2", "x.yaml:2:1: not valid YAML: expected a single document"),
        ("a: \x01", "x.yaml: not valid YAML: character '\\x01' at position 3"),
        ("1: a", "x.yaml:1:1: key 1 is not text"),
        ("? [a]\n: b", "x.yaml:1:3: key [a] is not text"),
        ("a: !!python/object/apply:os.system [ls]", "x.yaml:1:4: tag !!python/object/apply:os.system is not allowed"),
        ("a: !!python/name:os.system x", "x.yaml:1:4: tag !!python/name:os.system is not allowed"),
        ("a: !mine 3", "x.yaml:1:4: tag !mine is not allowed"),
        ("a: !!int x", "x.yaml:1:4: 'x' cannot be read as int"),
        ("a: 1\n<<: 3", "x.yaml:2:5: '<<' expected a mapping or a list of mappings"),
        ("a: &x [*x]", "x.yaml:1:4: an alias (*) inside what it stands for"),
        ("a: " + "[" * 200 + "]" * 200, "x.yaml:1:103: nested deeper than 100 levels"),
        ("[" * 20_000, "x.yaml: nested deeper than 100 levels"),
    ],
)
def test_errors_are_one_line_with_the_place(text, message):
    with pytest.raises(UserError) as caught:
        parse(text, "x.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_aliases_cannot_explode():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(UserError, match="more than 1,000,000 values after expanding aliases"):
        parse("\n".join(lines))


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "weights.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match=r"weights.yaml: expected YAML text in UTF-8, found other bytes$"):
        read(str(path))


def test_written_text_is_readable():
    value = {
        "model": {"hidden_size": 64, "betas": (0.9, 0.95), "lr": 3e-4, "eps": 1e-8},
        "x": None,
        "empty": [],
        "on": True,
    }
    assert write(value) == (
        "model:\n  hidden_size: 64\n  betas: [0.9, 0.95]\n  lr: 0.0003\n  eps: 1.0e-08\n"
        "x: null\nempty: []\n'on': true\n"
    )


def test_what_is_written_reads_back_equal_here_and_in_other_yaml_readers():
    rng = random.Random(0)
    odd = [
        "1e-3",
        "yes",
        "null",
        "",
        " a ",
        "010",
        "0o7",
        "1:30",
        "a: b",
        "- a",
        "#",
        "é",
        "a\nb\n",
        "'",
        '"',
        "*a",
        "<<",
        "=",
    ]

    def value(depth):
        kind = rng.randrange(8 if depth else 6)
        match kind:
            case 0:
                return rng.choice([True, False, None])
            case 1:
                return rng.randint(-(10**20), 10**20)
            case 2:
                return rng.choice([1.0, -1.0]) * rng.random() * 10.0 ** rng.randint(-320, 300)
            case 3 | 4:
                return rng.choice(odd) * rng.randint(1, 40)
            case 5:
                return float(rng.randint(-3, 3))
            case 6:
                return [value(depth - 1) for _ in range(rng.randint(0, 4))]
            case _:
                return {rng.choice(odd): value(depth - 1) for _ in range(rng.randint(0, 4))}

    for _ in range(300):
        original = value(3)
        assert parse(write(original)) == original
        assert yaml.safe_load(write(original)) == original


PIECES = [
    *":-?,[]{}#&*!|>'\"% \n\t\r~1a\\\ufeff\u2028\ud800", ": ", "- ", "? ", "\n  ", "---\n", "<<: ", "!!int ",
    "&x 1", "*x", "{a: 1, b}", "[a, b: 1]", "a: 1\n", "a: 2\n", "| # text\n  a\n", ">-#\n",
]  # fmt: skip


def test_libyaml_reads_what_the_reader_in_python_reads_and_refuses_what_it_refuses(monkeypatch):
    rng = random.Random(0)

    def outcome(text):
        try:
            return repr(parse(text, "x.yaml"))
        except UserError as error:
            return error

    for _ in range(2000):
        text = "".join(rng.choices(PIECES, k=rng.randint(1, 10)))
        fast = outcome(text)
        with monkeypatch.context() as patch:
            patch.setattr(yaml_text, "_FastLoader", None)
            assert str(outcome(text)) == str(fast), repr(text)
