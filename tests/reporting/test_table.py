import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from hybridtron.reporting.page import environment, join
from hybridtron.reporting.table import Column, Table, decimal_column, integer_column
from hybridtron.reporting.values import html_values

HOSTILE = "<script>alert(1)</script>"
TABLE = Table([
    Column("block", ["attn", HOSTILE]), decimal_column("score", [0.5, None]), integer_column("cost", [8388608, 12.4])
])  # fmt: skip


class Nesting(HTMLParser):
    """Counts tables, and those outside a scroll container."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.outside = [], 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables += 1
            self.outside += not any(dict(some).get("class") == "scroll" for _, some in self.open)
        if tag not in ("img", "meta", "br"):
            self.open.append((tag, attributes))

    def handle_endtag(self, tag):
        while self.open.pop()[0] != tag:
            pass


WHOLE = """
{% extends "page.html.j2" %}
{% from "blocks.html.j2" import folded, header, section %}
{% block title %}{{ hostile }}{% endblock %}
{% block content %}
{{ header("", hostile) }}
{% call section(hostile, hostile) %}{{ table }}{{ values }}{{ folded("all", table) }}{% endcall %}
{% endblock %}
{% block beside %}{{ hostile }}{% endblock %}
"""


def whole_page():
    values = {"a": {"b": 1, "c": [{"x": 1, "y": HOSTILE}, {"x": 2}]}, "long": list(range(20))}
    template = environment("hybridtron.reporting").from_string(WHOLE)
    return template.render(hostile=HOSTILE, table=TABLE, values=html_values(values))


def test_every_table_of_a_page_scrolls_in_its_own_container():
    found = Nesting(whole_page())
    assert (found.tables, found.outside) == (4, 0)


def test_nothing_in_a_page_is_wider_than_a_phone():
    style = re.search(r"<style>(.*)</style>", whole_page(), re.S).group(1)
    widths = re.findall(r"(?<![-\w])(?:min-)?width:([\d.]+)(rem|px)", style)
    assert widths
    assert all(float(size) * (16 if unit == "rem" else 1) <= 320 for size, unit in widths)
    assert ".scroll { overflow-x:auto; }" in style


def test_text_is_escaped_wherever_it_stands():
    text = whole_page()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 8
    assert join([HOSTILE]) == "&lt;script&gt;alert(1)&lt;/script&gt;"


def test_columns_of_numbers_are_on_the_right_and_small_text_is_below():
    text = Table([Column("name", ["a"]), Column("value", ["1\n2 of 3"], right=True, note="of all")]).to_html()
    assert '<th class="num">value<small>of all</small></th>' in text
    assert '<th scope="row">a</th><td class="num">1<small>2 of 3</small></td>' in text


def test_a_table_without_rows_is_nothing():
    assert Table([Column("name", [])]).to_html() == ""


def test_a_terminal_gets_aligned_lines_without_blanks_at_their_ends():
    table = Table.from_rows(["name", "value"], [["[red]", 1], ["longer", 1000]], right=["value"])
    assert table.to_terminal(Console(width=40)).splitlines() == ["name    value", "[red]       1", "longer   1000"]
    assert table.to_terminal(Console(width=40), header=False).splitlines()[0] == "[red]      1"


def test_where_there_is_no_terminal_lines_are_whole():
    assert Table([Column("pattern", ["x" * 500])]).to_terminal().splitlines()[1] == "x" * 500


def test_json_has_the_values_as_they_are():
    assert json.loads(json.dumps(TABLE.to_json()))[0] == {"block": "attn", "score": 0.5, "cost": 8388608}
    with pytest.raises(ValueError, match="shorter"):
        Table([Column("a", [1]), Column("b", [])]).to_json()


def test_numbers_in_nested_values_stay_numbers():
    text = html_values({"predict": [{"N": 7e10}], "where": [["in_fit", "1"]], "limit": {"a_b": 1, "of": [1.5, 2.5]}})
    assert '<th scope="row">predict</th><td>N 7 × 10<sup>10</sup></td>' in text
    assert "<td>in_fit, 1</td>" in text
    assert '<th scope="row">limit a_b</th><td>1</td>' in text
    assert '<th scope="row">limit of</th><td>1.5 to 2.5</td>' in text


def test_a_table_wider_than_the_terminal_becomes_several_with_the_first_column():
    labels = ["kind", *(f"quantity_{number}" for number in range(10))]
    rows = [[f"kind_{row}", *(f"{row}.{column}00000000" for column in range(10))] for row in range(3)]
    table = Table.from_rows(labels, rows)
    lines = table.to_terminal(Console(width=80, color_system=None)).splitlines()
    assert max(map(len, lines)) <= 80
    words = [word for line in lines for word in line.split()]
    assert {word for row in [labels, *rows] for word in row} == set(words)
    assert words.count("kind_0") == lines.count("") + 1 == 2
    assert len(table.to_terminal(Console(width=200, color_system=None)).splitlines()) == 4
