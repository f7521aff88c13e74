"""Evaluation on tasks: what lm-eval finds is what the log-likelihoods of the answers say."""

import csv
import json
import shutil
import sys

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

import hybridtron as ht
from hybridtron.cli.main import main
from hybridtron.convert.exporting import to_hf
from hybridtron.convert.hf.evaluate import evaluate_tasks
from hybridtron.convert.hf.tokenizer import as_transformers
from hybridtron.convert.importing import from_hf
from hybridtron.data.tokenizers.byte import ByteTokenizer
from hybridtron.data.tokenizers.hugging_face import HuggingFaceTokenizer
from hybridtron.laws.data.read import read_runs
from tests.conftest import TINY
from tests.data.kinds import byte_level_bpe, saved

QUESTIONS = [
    {"question": f"{a} plus {b} is", "choices": [str(a + b), str(a * b + 7), f"{a}{b}"], "answer": (a + b) % 3}
    for a in range(1, 6)
    for b in range(1, 4)
]
TASK = {
    "task": "sums",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "sums.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


def written(folder, **changes):
    (folder / "sums.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    file = folder / "sums.yaml"
    file.write_text(yaml.safe_dump({**TASK, **changes}))
    return file


@torch.no_grad()
def accuracies(logits_of):
    """Accuracy, plain and by the length of the answer, from logits [1, s, v] of ids [1, s]."""
    right, right_by_length = 0, 0
    for question in QUESTIONS:
        context, sums = list(f"Question: {question['question']}".encode()), []
        for choice in question["choices"]:
            answer = list(f" {choice}".encode())
            logs = logits_of(torch.tensor([context + answer]))[0].float().log_softmax(-1)
            sums.append(sum(float(logs[len(context) + i - 1, token]) for i, token in enumerate(answer)))
        right += max(range(3), key=sums.__getitem__) == question["answer"]
        by_length = [total / len(choice) for total, choice in zip(sums, question["choices"], strict=True)]
        right_by_length += max(range(3), key=by_length.__getitem__) == question["answer"]
    return {"acc": right / len(QUESTIONS), "acc_norm": right_by_length / len(QUESTIONS)}


def by_metric(rows):
    return {row["metric"]: row["value"] for row in rows}


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A trained hybrid, with a checkpoint in the middle."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = {**TINY["data"], "train": str(corpus / "train"), "valid": str(corpus / "valid")}
    train = {**TINY["train"], "steps": 4, "eval_every": 2}
    config = {**TINY, "folder": str(folder), "data": data, "train": train, "checkpoint": {"save_every": 2}}
    (folder.parent / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(folder.parent / "config.yaml")]) == 0
    return folder


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=320, num_key_value_heads=2, initializer_range=0.2, **shape)).eval()


def test_a_run_its_checkpoints_and_its_export_in_one_table(run, tmp_path):
    file = written(tmp_path)
    to_hf(run, tmp_path / "out", architecture="hybridtron", logits="never")
    rows = evaluate_tasks([run / "step_00000002", run, tmp_path / "out"], [str(file)])
    expected = [accuracies(ht.load(path).logits) for path in (run / "step_00000002", run, run)]
    assert [by_metric(rows[i : i + 2]) for i in (0, 2, 4)] == [pytest.approx(each) for each in expected]
    assert [(row["model"], row["task"]) for row in rows[::2]] == [
        (str(run / "step_00000002"), "sums"), (str(run), "sums"), (str(tmp_path / "out"), "sums"),
    ]  # fmt: skip
    assert all(0 < row["stderr"] < 0.2 and row["error"] == 1 - row["value"] for row in rows)


def test_results_of_a_run_are_read_by_laws(run, tmp_path):
    file = written(tmp_path)
    for path in (run, run / "step_00000002", run):
        evaluate_tasks([path], [str(file)])
    with (run / "evals.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [(row["step"], row["metric"]) for row in rows] == [
        ("2", "acc"), ("2", "acc_norm"), ("4", "acc"), ("4", "acc_norm"),
    ]  # fmt: skip
    needed, optional = ht.laws.LAWS["downstream"].columns, ht.laws.LAWS["downstream"].optional_columns
    table = read_runs([str(run / "evals.csv")], needed, optional, where=[("metric", "acc")])
    losses = {row["step"]: row.get("valid_loss") for row in map(json.loads, (run / "metrics.jsonl").open())}
    assert table["loss"].tolist() == pytest.approx([losses[2], losses[4]])
    assert table["tokens"].tolist() == [2 * 4 * 32, 4 * 4 * 32]
    assert table["error"].tolist() == pytest.approx([1 - float(rows[0]["value"]), 1 - float(rows[2]["value"])])


def test_a_llama_scores_equally_in_its_native_form_and_in_ours(llama, tmp_path):
    llama.save_pretrained(tmp_path / "native")
    as_transformers(ByteTokenizer()).save_pretrained(tmp_path / "native")
    from_hf(tmp_path / "native", tmp_path / "run", logits="never")
    to_hf(tmp_path / "run", tmp_path / "ours", architecture="hybridtron", logits="never")
    rows = evaluate_tasks([tmp_path / "native", tmp_path / "ours"], [str(written(tmp_path))], batch_size=4)
    expected = accuracies(lambda tokens: llama(tokens).logits)
    assert by_metric(rows[:2]) == by_metric(rows[2:]) == pytest.approx(expected)
    assert {row["value"] for row in rows} - {0.0, 1.0}


def test_a_task_that_generates(run, tmp_path):
    file = written(
        tmp_path,
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{choices[answer]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    (row,) = evaluate_tasks([run], [str(file)], limit=3)
    assert row["metric"].startswith("exact_match")
    assert 0 <= row["value"] <= 1


def test_the_tokenizers_of_transformers_give_our_ids(tmp_path):
    text = "Ünï\u20ac \x00 the  cat\n\ttail "
    for ours in (ByteTokenizer(), HuggingFaceTokenizer(saved(byte_level_bpe(), tmp_path))):
        theirs = as_transformers(ours)
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == ours.encode(text).tolist()
        assert theirs.decode(ids) == ours.decode(ids)
        assert theirs.eos_token_id == ours.eod


def test_the_command_line_prints_a_table_or_rows(run, tmp_path, capsys):
    file = written(tmp_path)
    assert main(["eval", str(run), "--tasks", str(file), "--limit", "4"]) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "task", "metric", "value", "stderr"]
    assert first.split()[1:3] == ["sums", "acc"]
    assert main(["eval", str(run), "--tasks", str(file), "--shots", "1", "--limit", "4", "--json"]) == 0
    assert [row["metric"] for row in json.loads(capsys.readouterr().out)] == ["acc", "acc_norm"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process_docs": "os.system"}, "process_docs: expected keys of a task that runs no code"),
        ({"class": "evil.Task"}, "class: expected keys"),
        ({"include": "other.yaml"}, "include: expected keys"),
        ({"dataset_path": "evil.py"}, "dataset_path = 'evil.py': expected one of json, csv"),
        ({"dataset_path": "pandas"}, "dataset_path = 'pandas'"),
        ({"dataset_kwargs": {"data_files": {"test": "none.jsonl"}}}, "data_files.test = 'none.jsonl': no such file"),
        ({"dataset_kwargs": {"trust_remote_code": True}}, "dataset_kwargs: expected data_files alone"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "metric acc: hf_evaluate: expected"),
        ({"metric_list": [{"metric": "./evil.py"}]}, "metric './evil.py': expected one of lm-eval"),
        ({"doc_to_text": "{{ question.__class__.__mro__[1].__subclasses__() }}"}, "SecurityError"),
        ({"doc_to_text": "{{ nothing.here }}"}, "nothing"),
        ({"test_split": "valid"}, "tasks: sums:"),
    ],
)
def test_task_files_never_run_code_and_mistakes_have_one_line(changes, message, run, tmp_path, capsys):
    assert main(["eval", str(run), "--tasks", str(written(tmp_path, **changes)), "--limit", "1"]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert message in printed[-1]
    assert not any(line.startswith("Traceback") for line in printed)


def test_tags_of_task_files_are_refused(run, tmp_path, capsys):
    file = written(tmp_path)
    file.write_text(file.read_text() + "process_results: !function evil.results\n")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert main(["eval", str(run), "--tasks", str(file)]) == 2
    assert "sums.yaml" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--tasks", "none.yaml"], "none.yaml: no such task file"),
        (["{run}", "--tasks", "{file},"], "--tasks = "),
        (["{run}", "--tasks", "{file},{file}"], "sums is named twice"),
        (["{run}", "--tasks", "{file}", "--batch-size", "0"], "--batch-size = 0: expected at least 1"),
        (["{run}", "--tasks", "{file}", "--data", "x"], "--data: expected without"),
        (["{run}", "{run}"], "expected one run or checkpoint; several are for tasks"),
        (["{folder}", "--tasks", "{file}"], "neither a run folder"),
    ],
)
def test_bad_arguments_have_one_line(arguments, message, run, tmp_path, capsys):
    names = {"run": str(run), "file": str(written(tmp_path)), "folder": str(tmp_path)}
    assert main(["eval", *(argument.format(**names) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_extra_is_named(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["eval", str(run), "--tasks", "sums.yaml"]) == 2
    assert "--tasks = sums.yaml: needs the extra hf: no package lm_eval" in capsys.readouterr().err


def test_a_foreign_file_in_the_place_of_results_is_left_alone(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/evals.csv").write_text("a,b\n1,2\n")
    arguments = ["--tasks", str(written(tmp_path)), "--limit", "1"]
    assert main(["eval", str(tmp_path / "run"), *arguments]) == 2
    assert "evals.csv: not a table that eval wrote" in capsys.readouterr().err
    assert (tmp_path / "run/evals.csv").read_text() == "a,b\n1,2\n"
