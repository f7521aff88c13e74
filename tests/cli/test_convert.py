"""`hybridtron convert`: its verbs, and bad input that ends with one line and exit code 2."""

import pytest

from hybridtron.cli.convert import VERBS, build_parser
from hybridtron.cli.main import main
from tools.convert_checkpoint import main as tool


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([name, "--help"])
    assert ended.value.code == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("program", [main, lambda arguments: tool(arguments[1:])], ids=["hybridtron", "tool"])
def test_an_unknown_verb_is_one_line(program, capsys):
    with pytest.raises(SystemExit) as ended:
        program(["convert", "nonsense"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("hybridtron: error: argument VERB: invalid choice: 'nonsense': expected ")
