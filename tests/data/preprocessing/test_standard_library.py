import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from hybridtron.data.datasets.indexed_dataset import read_index
from hybridtron.data.preprocessing.report import read_corpus_report
from hybridtron.data.preprocessing.standard_library import prepare_standard_library, standard_library_sources
from hybridtron.data.tokenizers.byte import ByteTokenizer

PROGRAM = """
import sys
from pathlib import Path
from hybridtron.data.preprocessing.standard_library import prepare_standard_library
assert "torch" not in sys.modules
print(prepare_standard_library(Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare_standard_library(tmp_path_factory.mktemp("data") / "new")


def test_the_sources_are_the_librarys_own_without_tests_and_packages():
    sources = standard_library_sources().files
    names = [source.name for source in sources]
    assert names == sorted(names)
    assert len(names) > 500
    assert {"ast.py", "json/decoder.py", "asyncio/tasks.py"} < set(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    assert not any(Path(name).name.startswith("_sysconfigdata") for name in names)


def test_every_byte_is_in_one_split_and_a_twentieth_of_the_files_is_held_out(folder):
    report = read_corpus_report(folder)
    train, valid = report.splits["train"], report.splits["valid"]
    sources = standard_library_sources().files
    assert train.bytes + valid.bytes == sum(source.size for source in sources)
    assert train.documents + valid.documents + report.empty_documents == len(sources)
    assert 0.03 < valid.documents / len(sources) < 0.07
    assert report.tokenizer["spec"] == "byte"


def test_documents_are_whole_files(folder):
    library = Path(sysconfig.get_path("stdlib"))
    stream = read_index(folder / "valid").tokens()
    ends = np.flatnonzero(stream == 256)
    held_out = {ByteTokenizer().decode(part) for part in np.split(stream, ends[:-1] + 1)}
    files = [library / source.name for source in standard_library_sources().files]
    texts = {path.read_bytes().decode("utf-8", "replace") for path in files}
    assert held_out < texts


def test_a_second_call_returns_at_once(folder):
    before = (folder / "train.bin").stat()
    told = []
    assert prepare_standard_library(folder.parent, told.append) == folder
    assert told == []
    after = (folder / "train.bin").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_two_processes_at_a_time_agree(folder, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path / "data")]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    answers = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert answers == {str(tmp_path / "data" / folder.name)}
    assert [path.name for path in (tmp_path / "data").iterdir()] == [folder.name]
    assert (tmp_path / "data" / folder.name / "train.bin").read_bytes() == (folder / "train.bin").read_bytes()
