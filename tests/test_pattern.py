"""The pattern language: what is read, what is refused and where, and what comes out as text."""

import contextlib
import random
import subprocess
import sys

import pytest

from hybridtron.errors import UserError
from hybridtron.pattern import (
    Pattern,
    PatternError,
    from_composer,
    from_megatron,
    parse,
    read,
    to_composer,
    to_megatron,
)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("attn", "attn"),
        ("2*attn mlp", "attn attn mlp"),
        ("3*(mamba mlp) attn mlp", "mamba mlp mamba mlp mamba mlp attn mlp"),
        ("2*(a 2*(b c))", "a b c b c a b c b c"),
        ("(a b) c", "a b c"),
        ("2*2*a", "a a a a"),
        (" 2 * a\t\n b ", "a a b"),
        ("_a1 A_2", "_a1 A_2"),
    ],
)
def test_reads_names_counts_and_groups(text, layers):
    assert parse(text) == Pattern(tuple(layers.split()))


def test_a_cut_starts_a_new_stage():
    pattern = parse("4*attn 9*mlp 4*attn 5*mlp | 2*attn 5*mlp")
    assert len(pattern) == 29
    assert pattern.cuts == (22,)
    assert [len(stage) for stage in pattern.stages()] == [22, 7]
    assert pattern.counts() == {"attn": 10, "mlp": 19}


def test_a_cut_inside_a_repeated_group_cuts_at_every_repetition():
    assert parse("2*(a | b)").stages() == [("a",), ("b", "a"), ("b",)]
    assert parse("2*(a |) b|c").cuts == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("4*attn 5*atn", "unknown block 'atn' at column 10: expected one of attn, mlp (nearest: attn)", 10),
        ("attn,mlp", "unexpected ',' at column 5: expected blanks between layers, no commas", 5),
        ("4*", "count 4 has no block at column 1", 1),
        ("4* | attn", "count 4 has no block at column 1", 1),
        ("*attn", "'*' without a count before it at column 1", 1),
        ("4**attn", "'*' without a count before it at column 3", 3),
        ("4attn", "count 4 without '*' at column 1: expected 4*attn", 1),
        ("attn 4(mlp)", "count 4 without '*' at column 6: expected 4*(...)", 6),
        ("attn*4", "the count comes before the block at column 5: expected 4*attn", 5),
        ("2.5*attn", "unexpected '.' at column 2: expected a whole number as count", 2),
        ("-1*attn", "unexpected '-' at column 1: expected a count of at least 1", 1),
        ("0*attn", "count 0 at column 1: expected at least 1", 1),
        ("attn 2*(mlp", "'(' is never closed at column 8", 8),
        ("attn)", "')' without '(' at column 5", 5),
        ("3*()", "empty group at column 3", 3),
        ("attn(mlp)", "items run together at column 5", 5),
        ("| attn", "empty pipeline stage before '|' at column 1", 1),
        ("attn |", "empty pipeline stage after '|' at column 6", 6),
        ("attn | | mlp", "empty pipeline stage before '|' at column 8", 8),
        ("2*(attn |)", "empty pipeline stage after '|' at column 9", 9),
        ("2*(| attn |) mlp", "empty pipeline stage before '|' at column 4", 4),
        ("100001*attn", "too many layers at column 1: expected at most 100,000", 1),
        ("9" * 5000 + "*attn", "too many layers at column 1", 1),
        ("99999*(9999*(9*attn))", "too many layers at column 7", 7),
    ],
)
def test_errors_point_at_the_place(text, message, column):
    with pytest.raises(PatternError) as caught:
        parse(text, known_names=["attn", "mlp"])
    first, shown, caret = str(caught.value).split("\n")
    assert first.startswith("pattern: " + message)
    if len(text) < 100:
        assert shown == "  " + text
    assert caret == "  " + " " * (column - 1) + "^"


def test_a_long_pattern_is_shown_around_the_error():
    text = "attn " * 200 + "atn " + "attn " * 200
    with pytest.raises(PatternError) as caught:
        parse(text, ["attn"])
    _, shown, caret = str(caught.value).split("\n")
    assert len(shown) < 120
    assert shown[caret.index("^") :].startswith("atn ")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_pattern_is_refused_in_one_line(text):
    with pytest.raises(UserError, match=r"^pattern: empty pattern: expected at least one layer, as in 4\*attn$"):
        parse(text)


def test_an_impossible_pattern_cannot_be_made():
    with pytest.raises(ValueError, match="at least one layer"):
        Pattern(())
    with pytest.raises(ValueError, match="empty stage"):
        Pattern(("a", "b"), (2,))


@pytest.mark.parametrize(
    "text",
    [
        "4*attn 9*mlp 4*attn 5*mlp | 2*attn 5*mlp",
        "4*attn 5*mlp 4*attn 9*mlp",
        "3*(mamba mlp) attn mlp",
        "4*(3*(mamba mlp) attn mlp) mlp",
        "16*(mlp attn mlp)",
        "26*(mamba mlp) | 26*(mamba mlp)",
    ],
)
def test_readable_text_is_its_own_canonical_text(text):
    assert str(parse(text)) == text


def test_text_of_any_pattern_reads_back_equal():
    rng = random.Random(0)
    for _ in range(300):
        size = rng.randint(1, 40)
        motif = rng.choices(["attn", "mlp", "mamba"][: rng.randint(1, 3)], k=rng.randint(1, size))
        layers = tuple((motif * size)[:size]) if rng.random() < 0.5 else tuple(rng.choices(["a", "b"], k=size))
        cuts = tuple(sorted(rng.sample(range(1, size), rng.randint(0, min(3, size - 1)))))
        pattern = Pattern(layers, cuts)
        assert parse(str(pattern)) == pattern
        assert len(str(pattern)) <= len(" ".join(layers)) + 3 * len(cuts)


def test_nonsense_raises_nothing_but_pattern_errors():
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choices(["a", "attn", "(", ")", "|", "*", "+", " ", "3", "M", "A", "-", "E", "/", "é"], k=8))
        with contextlib.suppress(PatternError):
            assert set(read(text, ["a", "attn", "mlp"]).layers) <= {"a", "attn", "mlp"}


def test_megatron_strings_both_ways():
    pattern = from_megatron("M-M*-E")
    assert pattern.layers == ("mamba", "mlp", "mamba", "attn", "mlp", "moe")
    assert to_megatron(pattern) == "M-M*-E"
    assert from_megatron("M-|M*").cuts == (2,)
    assert to_megatron(from_megatron("M-|M*|-")) == "M-|M*|-"
    assert from_megatron("MG", {"M": "ssm", "G": "gdn"}).layers == ("ssm", "gdn")


def test_composer_strings_both_ways():
    pattern = from_composer("AAMMMM")
    assert pattern.layers == ("attn", "attn", "mlp", "mlp", "mlp", "mlp")
    assert from_composer("2A+4M") == from_composer("2A4M") == from_composer(" 2A + 4M ") == pattern
    assert to_composer(pattern) == "2A+4M"
    assert to_composer(pattern, form="letters") == "AAMMMM"


@pytest.mark.parametrize(
    ("action", "message", "column"),
    [
        (
            lambda: from_megatron("M-X"),
            "unknown Megatron symbol 'X' at column 3: expected one of M (mamba), * (attn)",
            3,
        ),
        (lambda: from_megatron("M-/MM"), "a multi-token-prediction part ('/') cannot be expressed at column 3", 3),
        (lambda: from_megatron("M||-"), "empty pipeline stage before '|' at column 3", 3),
        (
            lambda: to_megatron(parse("mamba | 3*hyena")),
            "block 'hyena' has no symbol in Megatron's form at column 11",
            11,
        ),
        (lambda: from_composer("2A+"), "nothing follows '+' at column 3", 3),
        (lambda: from_composer("+2A"), "misplaced '+' at column 1", 1),
        (lambda: from_composer("2A++M"), "misplaced '+' at column 4", 4),
        (lambda: from_composer("2AX"), "unknown Composer letter 'X' at column 3: expected one of A (attn), M (mlp)", 3),
        (lambda: from_composer("A12"), "count 12 has no letter at column 3", 3),
        (lambda: from_composer("0A"), "count 0 at column 1", 1),
        (lambda: from_composer("2A|4M"), "a stage cut ('|') does not exist in Composer's form at column 3", 3),
        (lambda: from_composer("2(AM)"), "a group ('(') does not exist in Composer's form at column 2", 2),
        (lambda: from_composer("99999A99999M"), "too many layers at column 12", 12),
        (lambda: to_composer(parse("attn | mlp")), "a stage cut ('|') cannot be expressed in Composer's form", 6),
        (lambda: to_composer(parse("attn mamba")), "block 'mamba' has no symbol in Composer's form at column 6", 6),
    ],
)
def test_what_a_dialect_cannot_say_is_refused(action, message, column):
    with pytest.raises(PatternError) as caught:
        action()
    first, _, caret = str(caught.value).split("\n")
    assert first.startswith("pattern: " + message)
    assert caret.index("^") == column + 1


@pytest.mark.parametrize(
    ("text", "known_names", "same_as"),
    [
        ("2*attn mlp", ["attn", "mlp"], "2*attn mlp"),
        ("attn|mlp", ["attn", "mlp"], "attn | mlp"),
        ("AAMMMM", ["attn", "mlp"], "2*attn 4*mlp"),
        ("2A+4M", ["attn", "mlp", "mamba"], "2*attn 4*mlp"),
        ("M-M*", ["attn", "mlp", "mamba"], "mamba mlp mamba attn"),
        ("MM", ["mamba", "attn"], "2*mamba"),
        ("MM", ["attn", "mlp"], "2*mlp"),
        ("M M", ["M", "mamba"], "2*M"),
    ],
)
def test_the_dialect_is_found_from_the_known_names(text, known_names, same_as):
    assert read(text, known_names) == parse(same_as)


def test_a_text_with_two_meanings_is_refused_unless_the_dialect_is_named():
    names = ["mamba", "attn", "mlp"]
    with pytest.raises(
        PatternError, match=r"ambiguous 'MM'.*2\*mamba \(megatron dialect\) or 2\*mlp \(composer dialect\)"
    ):
        read("MM", names)
    assert read("MM", names, dialect="megatron") == parse("2*mamba")
    assert read("MM", names, dialect="composer") == parse("2*mlp")
    with pytest.raises(PatternError, match=r"unknown dialect 'megatro': expected one of .* \(nearest: megatron\)"):
        read("MM", names, dialect="megatro")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4*atn", "unknown block 'atn' at column 3"),
        ("M*-", r"unknown block 'mamba' \(Megatron symbol 'M'\) at column 1"),
        ("M-/M", r"unknown block 'mamba' \(Megatron symbol 'M'\)"),
        ("2AX", "unknown Composer letter 'X'"),
        ("4x(2A+4M)", "unknown Composer letter 'x'"),
    ],
)
def test_an_unreadable_text_gets_the_error_of_the_dialect_that_was_meant(text, message):
    with pytest.raises(PatternError, match="^pattern: " + message):
        read(text, ["attn", "mlp"])


def test_neither_patterns_nor_configs_import_torch():
    modules = "hybridtron.pattern, hybridtron.config.load, hybridtron.config.reference"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
