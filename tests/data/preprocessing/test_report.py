import pytest

from hybridtron.data.preprocessing.report import read_corpus_report, read_report
from hybridtron.errors import UserError


def test_data_that_was_prepared_elsewhere_has_no_report(tmp_path):
    assert read_corpus_report(tmp_path) is None
    assert read_report(tmp_path / "train") is None


@pytest.mark.parametrize("content", ["", "[]", '{"splits": {}}', '{"splits": {"train": {"tokens": 1}}}', "\xff"])
def test_a_file_that_is_no_report_is_an_error(tmp_path, content):
    (tmp_path / "report.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"report\.json is not a report of tools/prepare_data\.py"):
        read_report(tmp_path / "train")
