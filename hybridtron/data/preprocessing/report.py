"""What a preparation did, as it is written to report.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic

from hybridtron.errors import UserError
from hybridtron.files import read_plain

REPORT_NAME = "report.json"
NUM_LISTED = 100  # damaged lines and ignored files that the report itself names; the files beside it name all


@dataclass(frozen=True)
class SplitReport:
    """One split: `tokens` include one end-of-document token per document, `bytes` are those of the text alone."""

    documents: int
    tokens: int
    bytes: int

    @property
    def bytes_per_token(self) -> float:
        """Return the bytes per token, by which bits per token are divided to give bits per byte."""
        return self.bytes / self.tokens


@dataclass(frozen=True)
class CorpusReport:
    """The content of report.json.

    `tokenizer`: spec, name, fingerprint, vocab_size and eod. `repaired_documents` had characters replaced by U+FFFD.
    Every damaged line is in damaged.jsonl with its raw bytes, every file, used or ignored, in sources.jsonl.
    """

    tokenizer: dict[str, Any]
    dtype: str
    splits: dict[str, SplitReport]
    files: int
    ignored_files: int
    first_ignored: list[str]
    empty_documents: int
    repaired_documents: int
    damaged_lines: int
    first_damaged: list[dict[str, Any]]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def read_corpus_report(folder: Path) -> CorpusReport | None:
    """Read the report in `folder`, None where there is none. Raises UserError for one that cannot be understood."""
    path = folder / REPORT_NAME
    try:
        return pydantic.TypeAdapter(CorpusReport).validate_json(read_plain(path), strict=True)
    except FileNotFoundError:
        return None
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except OSError as error:
        reason = str(error.strerror)
    raise UserError(f"{path} is not a report of tools/prepare_data.py: {reason}")


def read_report(prefix: Path) -> SplitReport | None:
    """Read the report of the split at `prefix` (OUT/train or OUT/valid); None for data that was prepared elsewhere."""
    report = read_corpus_report(prefix.parent)
    return None if report is None else report.splits.get(prefix.name)
