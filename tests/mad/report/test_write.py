import base64
import json
import re

import pytest

from hybridtron.errors import UserError
from hybridtron.mad.report import tables
from hybridtron.mad.report.write import conditions, print_scores, read_scores, write_report
from hybridtron.mad.scoring.aggregate import by_procedure
from hybridtron.mad.scoring.results import opened_for_adding
from hybridtron.mad.tasks.protocol import TASKS, settings
from tests.mad.small import row

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(tmp_path):
    rows = [
        row(task=task, setting=setting, seed=seed, fingerprint=name, architecture=name,
            test_micro=0.1 * index + 0.3 + 0.01 * seed)
        for task in TASKS
        for setting in settings(task)[:2]
        for seed in (0, 1)
        for index, name in enumerate(("plain", "<b>hybrid</b>"))
    ]  # fmt: skip
    with opened_for_adding(tmp_path / "results") as results:
        results.add([*rows, row(num_cells=2, fingerprint="half", architecture="half")])
    return tmp_path / "results"


def test_a_report_is_one_page_that_needs_nothing_else(folder, tmp_path):
    made, warnings = read_scores([folder])
    write_report(made, warnings, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    images = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 2
    assert all(base64.b64decode(image).startswith(PNG) for image in images)
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)
    assert "<b>hybrid</b>" not in page.split("<table>")[1]
    assert "&lt;b&gt;hybrid" in page
    for text in ("40.5", "30.5", "vocab_size=32", "lr 0.001", "95 % interval over seeds"):
        assert text in page
    for name in ("radar.png", "curves.png"):
        assert (tmp_path / "report" / name).read_bytes().startswith(PNG)

    data = json.loads((tmp_path / "report" / "scores.json").read_text())
    best = data["scores"][0]
    assert best["overall"]["micro"]["mean"] == pytest.approx(0.405)
    assert best["overall"]["micro"]["low"] < 0.405 < best["overall"]["micro"]["high"]
    assert best["tasks"]["compression"]["settings"] == 2

    write_report(made, warnings, tmp_path / "report")  # an earlier report gives way, and nothing else
    (tmp_path / "report" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes.txt"):
        write_report(made, warnings, tmp_path / "report")


def test_the_table_has_a_line_per_architecture_and_its_conditions(folder, capsys):
    made, _ = read_scores([folder])
    print_scores(made)
    text = capsys.readouterr().out
    assert "plain" in text
    assert "40.5 ± 6.4" in text
    assert "2 seeds, ± is a 95 % interval over seeds" in text


def test_selection_on_the_test_split_is_said(folder):
    made, _ = read_scores([folder])
    assert not any("too good" in line for line in conditions(by_procedure(made)))
    with opened_for_adding(folder) as results:
        results.add([row(preset="madlab", selected_on="test", protocol="m", accuracy="macro")])
    made, _ = read_scores([folder])
    assert any("too good" in line for line in conditions(by_procedure(made)))
    assert any("fewer than six tasks" in line for line in conditions(by_procedure(made)))


def test_results_of_several_folders_are_one_report(folder, tmp_path):
    with opened_for_adding(tmp_path / "more") as results:
        results.add([row(fingerprint="m", architecture="more")])
    made, _ = read_scores([folder, tmp_path / "more"])
    assert [score.architecture for score in made] == ["<b>hybrid</b>", "plain", "more"]


def test_the_same_results_in_two_folders_are_one(tmp_path):
    for name in ("a", "b"):
        with opened_for_adding(tmp_path / name) as results:
            results.add([row(num_cells=2)])
    with pytest.raises(UserError, match="no setting has all its cells yet"):
        read_scores([tmp_path / "a", tmp_path / "b"])
    with opened_for_adding(tmp_path / "b") as results:
        results.add([row(num_cells=2, lr=5e-4)])
    (score,), _ = read_scores([tmp_path / "a", tmp_path / "b"])
    assert score.overall["micro"].seeds == 1


def test_an_incomplete_score_is_marked_and_what_all_have_is_compared(tmp_path, capsys):
    easy, hard = settings("compression")[:2]
    other = {**easy, "vocab_size": 5}
    with opened_for_adding(tmp_path / "results") as results:
        results.add([
            row(setting=easy, architecture="whole", test_micro=0.91),
            row(setting=hard, architecture="whole", test_micro=0.31),
            row(setting=other, architecture="whole", test_micro=0.771),
            row(setting=easy, architecture="part", fingerprint="g", test_micro=0.81),
            row(setting=easy, architecture="begun", fingerprint="h", num_cells=6),
        ])  # fmt: skip
    made, warnings = read_scores([tmp_path / "results"])
    assert warnings == ["begun (paper): compression, baseline, seed 0: 1 of 6 cells, left out"]
    print_scores(made)
    text = capsys.readouterr().out
    for words in ("61.0*", "2 of 11", "1 of 11", "no MAD score", "on 1 setting that all have", "91.0*", "81.0*",
                  "in no mean, since no settings of paper: compression vocab_size=5"):  # fmt: skip
        assert words in text
    write_report(made, warnings, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "reaches 91.0 % over compression, on 1 setting" in page
    assert "77.1" in page.split("not of the preset, in no mean")[1]


def test_a_changed_preset_is_told_from_the_preset(tmp_path, capsys):
    with opened_for_adding(tmp_path) as results:
        results.add([row(num_cells=1, protocol="changed", planned_steps=10)])
    made, _ = read_scores([tmp_path])
    print_scores(made)
    text = capsys.readouterr().out
    assert "mh_attention (paper, changed)" in text
    assert "paper, changed (steps 10 in place of 20,000; cells 1 in place of 6): test accuracy" in text


def test_what_was_trained_in_another_way_is_compared_apart(tmp_path, capsys):
    def all_tasks(name, value, protocol):
        about = {"architecture": name, "fingerprint": name, "preset": "search", "protocol": protocol}
        return [row(task=task, setting=settings(task)[0], test_micro=value, **about) for task in TASKS]

    with opened_for_adding(tmp_path / "results") as results:
        results.add([*all_tasks("a", 0.4, "of a"), *all_tasks("b", 0.6, "of a"), *all_tasks("c", 0.9, "of c")])
    made, warnings = read_scores([tmp_path / "results"])
    print_scores(made)
    text = capsys.readouterr().out
    assert text.count("architecture ") == 2
    assert "trained in 2 ways" in text
    write_report(made, warnings, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<b>b (search, changed)</b> reaches 60.0 % over the six tasks." in page
    assert "<b>c (search, changed)</b> reaches 90.0 % over the six tasks." in page
    for heading in ("1. Scores", "2. Scores", "1. Compression", "2. Compression"):
        assert page.count(f"<h2>{heading}</h2>") == 1
    anchors = re.findall(r'<section id="([^"]+)"', page)
    assert len(set(anchors)) == len(anchors)
    made_files = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert made_files == {"radar.png", "curves.png", "radar-2.png", "curves-2.png"}


def test_a_task_without_settings_of_the_preset_says_on_what_it_is_scored(tmp_path):
    with opened_for_adding(tmp_path) as results:
        results.add([row(setting={**row()["setting"], "vocab_size": 5})])
    made, _ = read_scores([tmp_path])
    last = conditions(by_procedure(made))[-1]
    assert last.endswith("scored on what is no setting of paper: compression vocab_size=5")


def test_what_cannot_be_scored_yet_is_named_beside_a_score_of_the_same_model(tmp_path):
    with opened_for_adding(tmp_path) as results:
        results.add([row(), row(protocol="changed", num_cells=6, seed=3)])
    _, warnings = read_scores([tmp_path])
    assert warnings == ["mh_attention (paper): compression, baseline, seed 3: 1 of 6 cells, left out"]


def test_results_that_are_all_damaged_are_named(tmp_path):
    (tmp_path / "results.jsonl").write_text("abc\n{}\n")
    with pytest.raises(
        UserError, match=r"no setting has all its cells yet \(.*line 1: damaged \(no JSON\).*and 1 more"
    ):
        read_scores([tmp_path])


def test_nothing_complete_is_nothing_to_report(tmp_path):
    with opened_for_adding(tmp_path) as results:
        results.add([row(num_cells=6)])
    with pytest.raises(UserError, match="no setting has all its cells yet"):
        read_scores([tmp_path])


def long_runs(name, values):
    """Rows of 20,000 steps on the baselines of the six tasks, a seed for each value."""
    about = {"architecture": name, "fingerprint": name, "preset": "search", "planned_steps": 20_000}
    return [
        row(task=task, setting=settings(task)[0], seed=seed, test_micro=value, **about)
        for task in TASKS
        for seed, value in enumerate(values)
    ]


def test_scores_whose_intervals_overlap_are_not_distinguishable(tmp_path):
    with opened_for_adding(tmp_path / "results") as results:
        results.add([*long_runs("best", (0.7, 0.72, 0.74)), *long_runs("near", (0.69, 0.71, 0.73)),
                     *long_runs("far", (0.3, 0.31, 0.32))])  # fmt: skip
    made, warnings = read_scores([tmp_path / "results"])
    text = "\n".join(conditions(by_procedure(made)))
    assert "best (search, changed) is not distinguishable from near (search, changed): the 95 % intervals" in text
    assert "evidence" not in text
    write_report(made, warnings, tmp_path / "report")
    assert "Not distinguishable from 1 other architecture." in (tmp_path / "report" / "report.html").read_text()
    with opened_for_adding(tmp_path / "results") as results:
        results.add(long_runs("above", (0.9, 0.91, 0.92)))
    text = "\n".join(conditions(by_procedure(read_scores([tmp_path / "results"])[0])))
    assert "distinguishable" not in text


def test_one_seed_distinguishes_nothing(tmp_path):
    with opened_for_adding(tmp_path) as results:
        results.add([*long_runs("one", (0.7,)), *long_runs("other", (0.5,))])
    text = "\n".join(conditions(by_procedure(read_scores([tmp_path])[0])))
    assert "one seed, so no interval: differences can be chance" in text


@pytest.mark.parametrize("steps", [8, 99])
def test_a_few_steps_are_no_evidence(tmp_path, steps):
    with opened_for_adding(tmp_path / "results") as results:
        results.add([row(preset="smoke", planned_steps=steps), row(preset="smoke", planned_steps=steps, seed=1)])
    made, warnings = read_scores([tmp_path / "results"])
    expected = f"smoke: at most {steps} steps a cell: this shows that training runs, and is no evidence"
    assert any(line.startswith(expected) for line in conditions(by_procedure(made)))
    write_report(made, warnings, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert f"At most {steps} steps a cell: no evidence about architectures." in page


def test_tables_of_accuracies_have_the_sizes(folder):
    made, _ = read_scores([folder])
    for table in (tables.summary(made), tables.accuracies(made)):
        columns = {column.label: list(column.values) for column in table.columns}
        times = len(columns["parameters"]) // len(made)
        assert columns["parameters"] == [score.parameters for score in made for _ in range(times)]
        assert len(columns["parameters"]) == len(columns["mean"])
