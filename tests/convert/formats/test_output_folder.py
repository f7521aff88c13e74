"""Folders that have their name once they are whole."""

from __future__ import annotations

import pytest

from hybridtron.convert.formats.output_folder import output_folder
from hybridtron.errors import UserError


def test_a_folder_below_a_file_is_refused_by_the_name_that_was_given(tmp_path):
    (tmp_path / "file").write_text("precious\n")
    with pytest.raises(UserError) as refused:
        output_folder(tmp_path / "file" / "out").__enter__()
    assert str(refused.value) == f"{tmp_path / 'file' / 'out'}: cannot be made: {tmp_path / 'file'} is no folder"
    assert (tmp_path / "file").read_text() == "precious\n"
