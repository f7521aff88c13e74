"""Folders of Hugging Face become runs, and runs become folders: bitwise, whole, or not at all."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
import torch

import hybridtron as ht
from hybridtron.cli.main import main
from hybridtron.convert import logits
from hybridtron.convert.exporting import to_hf
from hybridtron.convert.importing import from_hf
from hybridtron.errors import UserError
from tests.convert.families import FAMILIES, read_folder

LLAMA = "llama, biases, tied, wide heads"


@pytest.fixture(scope="session")
def imported(theirs, tmp_path_factory):
    """A Llama as a run folder."""
    out = tmp_path_factory.mktemp("imported") / "llama"
    from_hf(theirs[LLAMA].folder, out, seq_len=16, logits="never")
    return out


@pytest.fixture
def copy(theirs, tmp_path):
    """A copy of the Llama's folder, to damage."""
    shutil.copytree(theirs[LLAMA].folder, tmp_path / "copy", ignore=shutil.ignore_patterns("gradients"))
    return tmp_path / "copy"


def change_config(folder, **values):
    file = folder / "config.json"
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in content.items() if value != "remove"}))


def rewrite(folder, tensors):
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def assert_same_tensors(one, other):
    first, second = read_folder(one), read_folder(other)
    assert sorted(first) == sorted(second)
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back_is_bitwise_the_original(theirs, tmp_path, name):
    receipt = from_hf(theirs[name].folder, tmp_path / "run", logits="never")
    assert not receipt.different
    back = to_hf(tmp_path / "run", tmp_path / "back", architecture=FAMILIES[name].architecture, logits="never")
    assert not back.different
    assert_same_tensors(tmp_path / "back", theirs[name].folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_as_a_model_of_ours_and_back_is_bitwise_the_run(theirs, tmp_path, name):
    from_hf(theirs[name].folder, tmp_path / "run", logits="never")
    to_hf(tmp_path / "run", tmp_path / "ours", architecture="hybridtron", logits="never")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == ["HybridtronForCausalLM"]
    from_hf(tmp_path / "ours", tmp_path / "again", logits="never")
    one, other = (ht.load(tmp_path / run).state_dict() for run in ("run", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert all(key.removeprefix("model.") in one for key in read_folder(tmp_path / "ours"))


def test_the_receipt_tells_files_tensors_logits_and_versions(theirs, tmp_path, capsys):
    source, out = theirs["llama"].folder, tmp_path / "run"
    assert main(["convert", "from-hf", str(source), str(out), "--json", "--logits", "always"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "conversion.json").read_text())
    assert printed["equal"] is True
    assert printed["architecture"] == "llama"
    assert {tensor["dtype"] for tensor in printed["tensors"]} == {"float32"}
    assert len(printed["tensors"]) == len(read_folder(source))
    assert printed["parameters"] == sum(tensor.numel() for tensor in read_folder(source).values())
    assert re.fullmatch("[0-9a-f]{64}", printed["source_files"]["model.safetensors"])
    assert {"config.yaml", "latest", "step_00000000/manifest.json"} <= printed["target_files"].keys()
    assert all(0 <= printed["logits"][layout] < 1e-4 for layout in ("TP1", "TP2"))
    assert printed["versions"]["transformers"]


def test_without_a_check_nothing_is_read_back_and_the_receipt_says_so(imported, tmp_path, capsys):
    checked, unchecked = tmp_path / "checked", tmp_path / "unchecked"
    verb = ["convert", "to-hf", str(imported)]
    assert main([*verb, str(checked), "--logits", "never"]) == 0
    assert main([*verb, str(unchecked), "--logits", "never", "--no-check"]) == 0
    assert "not checked" in capsys.readouterr().out
    receipt, other = (json.loads((out / "conversion.json").read_text()) for out in (unchecked, checked))
    assert (receipt["equal"], receipt["source_files"], receipt["target_files"]) == (None, {}, {})
    assert {tensor["equal"] for tensor in receipt["tensors"]} == {None}
    assert any("not read back" in note for note in receipt["notes"])
    assert (receipt["seconds"].keys(), other["seconds"].keys()) == ({"convert"}, {"convert", "check"})
    assert (unchecked / "model.safetensors").read_bytes() == (checked / "model.safetensors").read_bytes()


def test_what_is_read_back_otherwise_is_reported(imported, tmp_path, capsys, monkeypatch):
    """One bit of the embedding is flipped between writing and reading."""
    from hybridtron.convert import streaming

    embedding = ht.load(imported).state_dict()["embedding.weight"]

    def flipped(one, other, is_equal=streaming.is_equal):
        if one.shape == embedding.shape:  # of no other tensor; threads compare in any order
            one = one.clone()
            one.view(torch.int32).view(-1)[0] ^= 1
        return is_equal(one, other)

    monkeypatch.setattr(streaming, "is_equal", flipped)
    assert main(["convert", "to-hf", str(imported), str(tmp_path / "out"), "--logits", "never"]) == 1
    assert "1 tensors are not what was written, first model.embed_tokens.weight" in capsys.readouterr().err
    receipt = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert receipt["equal"] is False
    assert [tensor["name"] for tensor in receipt["tensors"] if not tensor["equal"]] == ["model.embed_tokens.weight"]


def test_other_logits_of_equal_tensors_are_judged(theirs, tmp_path, capsys, monkeypatch):
    """The base of rotary positions is read wrong; two processes fail, in one line."""
    from hybridtron.convert import importing

    def falsified(values, file, understand=importing.understand):
        architecture, model = understand(values, file)
        model["blocks"]["attn"]["rotary_base"] = 50.0
        return architecture, model

    monkeypatch.setattr(importing, "understand", falsified)
    monkeypatch.setattr(
        "hybridtron.convert.logits._logits_of_two_processes", lambda run, tokens: tokens[..., None] * torch.nan
    )
    assert main(["convert", "from-hf", str(theirs[LLAMA].folder), str(tmp_path / "run")]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"logits +differ", printed)
    receipt = json.loads((tmp_path / "run" / "conversion.json").read_text())
    assert receipt["equal"] is True
    assert receipt["same_logits"] is False
    assert receipt["logits"]["TP1"] > 1e-4 * receipt["largest_logit"]
    assert receipt["logits"]["TP2"] is None
    assert "logits at TP2 differ by no finite number" in receipt["notes"]


def test_the_receipt_outlives_a_comparison_of_logits_that_fails(theirs, tmp_path, capfd, monkeypatch):
    """Of two processes without a checkpoint: neither's output reaches the terminal."""
    source, real = theirs[LLAMA].folder, logits._logits_of_two_processes
    monkeypatch.setattr(logits, "_logits_of_two_processes", lambda run, tokens: real(run / "nowhere", tokens))
    receipt = from_hf(source, tmp_path / "auto")
    assert receipt.same_logits is None
    assert any("logits at TP2" in note and "nowhere" in note for note in receipt.notes)
    with pytest.raises(OSError, match="logits at TP2"):
        from_hf(source, tmp_path / "always", logits="always")
    assert json.loads((tmp_path / "always" / "conversion.json").read_text())["equal"] is True
    assert "Traceback" not in capfd.readouterr().err


def test_always_needs_transformers_before_anything_is_written(theirs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="logits = 'always': needs transformers"):
        from_hf(theirs[LLAMA].folder, tmp_path / "run", logits="always")
    assert not (tmp_path / "run").exists()


def test_a_run_becomes_what_expresses_it(imported, tmp_path, capsys):
    """And transformers gives the logits of the run, whose table says so."""
    assert main(["convert", "to-hf", str(imported), str(tmp_path / "native"), "--logits", "never"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"architecture +llama", printed)
    assert re.search(r"equal, read back +(\d+) of \1, bitwise", printed)
    with pytest.raises(UserError, match=r"mistral cannot express layer 0 \(attn, attention\): its qkv_bias is true"):
        to_hf(imported, tmp_path / "refused", architecture="mistral")
    assert not (tmp_path / "refused").exists()


def test_what_is_imported_generates_and_is_described(imported, corpus, capsys):
    assert len(ht.load(imported).generate("the model", 5)) == 1
    assert main(["describe", str(imported)]) == 0
    assert main(["eval", str(imported), "--data", str(corpus / "valid"), "--json"]) == 0
    assert '"loss": ' in capsys.readouterr().out
    assert main(["train", str(imported / "config.yaml"), "folder=elsewhere"]) == 2
    assert "data.train is missing" in capsys.readouterr().err


def test_a_run_begins_with_an_imported_model(imported, corpus, tmp_path):
    config = {
        "name": "goes-on", "folder": str(tmp_path / "run"), "model": model_section(imported),
        "data": {"train": str(corpus / "train"), "seq_len": 16},
        "train": {"steps": 1, "global_batch_size": 1, "init_from": str(imported)},
        "optimizer": {"lr": 1e-30},
    }  # fmt: skip
    ht.train(config)
    before, after = ht.load(imported).state_dict(), ht.load(tmp_path / "run").state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_layers_of_an_imported_model_are_taken_by_name(imported, corpus, tmp_path):
    """Its first two layers, twice, and a larger vocabulary."""
    model = model_section(imported)
    names, rows = ht.load(imported).config.model.layer_names, model["vocab_size"]
    model |= {"pattern": " ".join(names[:2] * 2), "vocab_size": rows + 64}
    config = {
        "name": "mapped", "folder": str(tmp_path / "run"), "model": model,
        "data": {"train": str(corpus / "train"), "seq_len": 16},
        "train": {
            "steps": 1, "global_batch_size": 1, "init_from": str(imported), "init_vocabulary": "extend",
            "init_map": {f"layers.{i}": f"layers.{i % 2}" for i in range(4)},
            "init_left_over": [f"layers.{i}" for i in range(2, len(names))],
        },
        "optimizer": {"lr": 1e-30},
    }  # fmt: skip
    ht.train(config)
    before, after = ht.load(imported).state_dict(), ht.load(tmp_path / "run").state_dict()
    assert torch.equal(after["embedding.weight"][:rows], before["embedding.weight"])
    layers = [name for name in after if name.startswith("layers.")]
    assert len({name.split(".")[1] for name in layers}) == 4
    for name in layers:
        _, index, rest = name.split(".", 2)
        assert torch.equal(after[name], before[f"layers.{int(index) % 2}.{rest}"])


def model_section(run):
    return ht.load(run).config.model.model_dump(mode="json", serialize_as_any=True)


def test_number_formats(theirs, copy, tmp_path):
    """bf16 stays, float16 needs a word, and a wider one is converted by it."""
    tensors = {name: tensor.bfloat16() for name, tensor in read_folder(theirs[LLAMA].folder).items()}
    rewrite(copy, tensors)
    from_hf(copy, tmp_path / "bf16", logits="never")
    assert {value.dtype for value in ht.load(tmp_path / "bf16").state_dict().values()} == {torch.bfloat16}
    to_hf(tmp_path / "bf16", tmp_path / "back", logits="never")
    assert_same_tensors(tmp_path / "back", copy)
    rewrite(copy, {name: tensor.half() for name, tensor in tensors.items()})
    with pytest.raises(UserError, match="is float16; expected float32 or bfloat16"):
        from_hf(copy, tmp_path / "half")
    receipt = from_hf(copy, tmp_path / "half", dtype="float32", logits="never")
    assert not receipt.different
    with pytest.raises(UserError, match=r"dtype = bfloat: expected one of .*nearest: bfloat16"):
        from_hf(copy, tmp_path / "other", dtype="bfloat")


def test_a_narrower_number_format_is_equal_to_what_was_converted(copy, tmp_path, capsys):
    """bf16 and fp16 have the same size, and neither holds every value of the other."""
    tensors = {name: tensor.bfloat16() for name, tensor in read_folder(copy).items()}
    tensors["model.norm.weight"] *= 1e-7  # fp16 keeps fewer digits
    rewrite(copy, tensors)
    from_hf(copy, tmp_path / "run", logits="never")
    receipt = to_hf(tmp_path / "run", tmp_path / "half", dtype="float16", logits="never")
    assert not receipt.different
    found = read_folder(tmp_path / "half")
    assert all(torch.equal(found[name], tensor.half()) for name, tensor in tensors.items())
    assert not torch.equal(found["model.norm.weight"].bfloat16(), tensors["model.norm.weight"])
    assert main(["convert", "from-hf", str(copy), str(tmp_path / "other"), "--dtype", "float16"]) == 2
    assert "--dtype = float16: expected float32 or bfloat16" in capsys.readouterr().err
    rewrite(copy, {**tensors, "model.norm.weight": torch.full((64,), 1e5).bfloat16()})
    from_hf(copy, tmp_path / "large", logits="never")
    with pytest.raises(UserError, match=r"model.norm.weight: its largest value, 9.98e\+04, is beyond float16"):
        to_hf(tmp_path / "large", tmp_path / "beyond", dtype="float16", logits="never")
    assert not (tmp_path / "beyond").exists()


def test_logits_are_compared_with_those_of_rounded_weights(copy, tmp_path, monkeypatch):
    """Rounding alone moves logits further than they may differ."""
    monkeypatch.setattr(logits, "_logits_of_two_processes", logits._own_logits)
    from_hf(copy, tmp_path / "wide", logits="never")
    found = from_hf(copy, tmp_path / "narrow", dtype="bfloat16", pad_vocab_to=7, logits="always")
    assert found.same_logits
    assert logits.largest_differences(tmp_path / "narrow", copy)[0]["TP1"] > 1e-4 * found.largest_logit
    assert to_hf(tmp_path / "wide", tmp_path / "exported", dtype="bfloat16", logits="always").same_logits


def test_an_unlimited_step_size_is_strict_json(theirs, tmp_path):
    """As transformers writes it, which reads it back."""
    from transformers import AutoConfig

    source = theirs["mamba2"].folder
    from_hf(source, tmp_path / "run", logits="never")
    to_hf(tmp_path / "run", tmp_path / "back", architecture="mamba2", logits="never")

    def refuse(word):
        raise ValueError(word)

    written = json.loads((tmp_path / "back" / "config.json").read_text(), parse_constant=refuse)
    assert written["time_step_limit"] == json.loads((source / "config.json").read_text())["time_step_limit"]
    assert tuple(AutoConfig.from_pretrained(tmp_path / "back").time_step_limit) == (0.0, float("inf"))
    from_hf(tmp_path / "back", tmp_path / "again", logits="never")
    assert ht.load(tmp_path / "again").config.model == ht.load(tmp_path / "run").config.model


def test_tensors_too_many_and_too_few(copy, tmp_path):
    tensors = read_folder(copy)
    more = {**tensors, "mtp.head.weight": torch.ones(2), "model.rotary.inv_freq": torch.ones(3)}
    rewrite(copy, more)
    with pytest.raises(UserError, match=r"2 left over: .*mtp.head.weight"):
        from_hf(copy, tmp_path / "run")
    with pytest.raises(UserError, match=r"1 left over: mtp.head.weight"):
        from_hf(copy, tmp_path / "run", ignore=["*.inv_freq"])
    with pytest.raises(UserError, match=r"ignore = mtp.heads\*: matches no tensor that is left over"):
        from_hf(copy, tmp_path / "run", ignore=["*.inv_freq", "mtp.heads*"])
    receipt = from_hf(copy, tmp_path / "run", ignore=["*.inv_freq", "mtp.head.weight"], logits="never")
    assert sorted(receipt.ignored) == ["model.rotary.inv_freq", "mtp.head.weight"]
    fewer = {name: tensor for name, tensor in tensors.items() if "layers.1.self_attn.q" not in name}
    rewrite(copy, fewer)
    with pytest.raises(UserError, match=r"2 missing: model.layers.1.self_attn.q_proj.weight, .*q_proj.bias"):
        from_hf(copy, tmp_path / "again")
    rewrite(copy, {**tensors, "model.norm.weight": torch.ones(63)})
    with pytest.raises(UserError, match=r"1 of another shape: model.norm.weight \[63\] \(expected \[64\]\)"):
        from_hf(copy, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "lama"}, r"model_type = 'lama': expected one of .*\(nearest: llama\)"),
        ({"model_type": "remove"}, "model_type = None: expected one of"),
        ({"new_kind_of_gate": 2}, "new_kind_of_gate = 2: not known for this architecture"),
        ({"hidden_size": "remove"}, "hidden_size is missing"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"rope_parameters": {"rope_type": "yarm", "factor": 4.0}}, r"rope_type = 'yarm': .*\(nearest: yarn\)"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 2}},
            "mscale = 2: not known",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.factor is missing"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0}},
            "rope_parameters.high_freq_factor is missing",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": "remove"},
            "max_position_embeddings is missing",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": "remove"}, "rope_type = 'dynamic'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic'"),  # transformers prefers it
        ({"mlp_bias": True}, "mlp_bias = True: expected False"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu': expected 'silu'"),
    ],
)
def test_settings_that_are_refused(copy, tmp_path, values, words):
    change_config(copy, **values)
    with pytest.raises(UserError, match=words):
        from_hf(copy, tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_older_settings_of_rotary_positions(copy, tmp_path):
    change_config(copy, rope_parameters="remove", rope_theta=500.0, rope_scaling=None)
    from_hf(copy, tmp_path / "run", logits="never")
    assert ht.load(tmp_path / "run").config.model.blocks["attn"].rotary_base == 500.0


@pytest.mark.parametrize(("folder", "name"), [("my model", "my-model"), ("_a (b)", "a-b-"), ("é", "imported")])
def test_the_run_is_named_after_the_folder(copy, tmp_path, folder, name):
    from_hf(copy, tmp_path / folder, logits="never")
    assert ht.load(tmp_path / folder).config.name == name


def test_folders_that_are_none(copy, tmp_path, imported, capsys):
    def refused(*arguments):
        assert main(["convert", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "is no folder" in refused("from-hf", tmp_path / "nowhere", tmp_path / "out")
    assert "exists: expected the name of a new folder" in refused("from-hf", copy, copy)
    assert "exists: expected the name of a new folder" in refused("to-hf", imported, copy)
    assert "no such folder; expected a run folder or checkpoint" in refused(
        "to-hf", tmp_path / "nowhere", tmp_path / "out"
    )
    assert "--as = lama: expected one of" in refused("to-hf", imported, tmp_path / "out", "--as", "lama")
    assert "--logits = 'some': expected one of" in refused("to-hf", imported, tmp_path / "out", "--logits", "some")
    (copy / "config.json").write_text("{")
    assert "config.json: damaged" in refused("from-hf", copy, tmp_path / "out")
    (copy / "config.json").unlink()
    assert "has no config.json" in refused("from-hf", copy, tmp_path / "out")


def test_an_interrupted_conversion_leaves_nothing(copy, tmp_path, imported):
    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    for convert, source in ((from_hf, copy), (to_hf, imported)):
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", progress=interrupt)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
