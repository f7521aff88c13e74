"""Preparing a corpus: files and folders of text into Megatron's indexed format."""

import functools
import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hybridtron.data.datasets.indexed_dataset import PARTIAL_NAME, token_dtype
from hybridtron.data.preprocessing.merge import merge_shards, read_merged
from hybridtron.data.preprocessing.report import REPORT_NAME, CorpusReport
from hybridtron.data.preprocessing.shards import ShardTask, is_finished, plan_shards, write_shard
from hybridtron.data.preprocessing.sources import SourceList
from hybridtron.data.preprocessing.work_folder import FINAL_NAME, claimed, publish
from hybridtron.data.tokenizers.tokenizer import load_tokenizer
from hybridtron.errors import UserError
from hybridtron.files import replace_file
from hybridtron.processes import run_tasks

SHARD_BYTES = 32 << 20
BYTES_PER_TOKEN, PACKED = 3, 4  # a guess for tokenizers, and for how much text compressed files hold
Progress = Callable[[str, int, int], None]

logger = logging.getLogger(__name__)


def prepare(
    sources: SourceList,
    out: Path,
    *,
    tokenizer: str = "byte",
    eod_token: str | None = None,
    valid_fraction: float = 0.05,
    json_key: str = "text",
    num_workers: int = 1,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> CorpusReport:
    """Encode `sources` (of find_sources) into OUT/train.bin/.idx and OUT/valid.bin/.idx, with a report beside them.

    A text file is one document, a line of .jsonl, .jsonl.gz or .jsonl.zst is one (its `json_key`); every document ends
    with the tokenizer's end-of-document id. Where no file was chosen for validation, about `valid_fraction` of the
    documents are held out: whole text files by a hash of their relative path, lines by a hash of path and line number.
    With two documents or more neither split is empty; an empty split has no files. The same input gives the same bytes,
    whatever `num_workers`.

    OUT/report.json is the returned report; OUT/sources.jsonl has a line for every file, used or ignored, and
    OUT/damaged.jsonl one for every damaged line, with its raw bytes. The work lies in OUT/.partial until it is done,
    and takes as much of the disk as the token files and one shard: the same call continues where a killed one stopped.
    `progress(stage, done, total)` is called in the stages "encode" (bytes of input) and "merge" (bytes of output).

    Raises UserError for bad input, for an OUT that holds anything else, for one begun with other settings, and for a
    disk that is too small; OSError where writing fails; processes.WorkerDied where a worker process is gone.
    """
    if not 0.0 <= valid_fraction < 1.0:
        raise UserError(f"valid_fraction = {valid_fraction}: expected at least 0 and below 1")
    if num_workers < 1:
        raise UserError(f"num_workers = {num_workers}: expected at least 1")
    loaded = load_tokenizer(tokenizer, eod_token, key="tokenizer")
    settings = {"tokenizer": loaded.fingerprint, "valid_fraction": valid_fraction, "json_key": json_key}
    settings |= {"format": 2, "shard_bytes": shard_bytes, "files": _digest(sources)}
    with claimed(out, settings) as finished:
        if finished is not None:
            return finished
        partial, dtype = out / PARTIAL_NAME, token_dtype(loaded.vocab_size)
        tasks = plan_shards(sources.files, shard_bytes)
        done = read_merged(partial).shards
        missing = [task for task in tasks[done:] if not is_finished(partial / task.name, dtype)]
        _check_disk(out, missing, dtype, 1 if tokenizer == "byte" else BYTES_PER_TOKEN)
        logger.info("%d of %d shards to encode in %s", len(missing), len(tasks), partial)
        names: dict[str, Any] = {"tokenizer_spec": tokenizer, "eod_token": eod_token, "fingerprint": loaded.fingerprint}
        work = functools.partial(write_shard, work_folder=partial, json_key=json_key, **names)
        run_tasks(work, missing, num_workers, _byte_progress(tasks, missing, progress))
        facts = {name: getattr(loaded, name) for name in ("name", "fingerprint", "vocab_size", "eod")}
        facts = {"spec": tokenizer, **facts}
        merging = functools.partial(progress, "merge") if progress else lambda done, total: None
        folders = [partial / task.name for task in tasks]
        report = merge_shards(folders, sources, facts, dtype, valid_fraction, partial, merging)
        if report.splits:
            loaded.save(partial / FINAL_NAME)
            replace_file(partial / FINAL_NAME / REPORT_NAME, report.to_json())
            publish(out)
            return report
        shutil.rmtree(partial)
        out.rmdir()
    raise UserError(_nothing_found(report, json_key))


def _check_disk(out: Path, tasks: list[ShardTask], dtype: np.dtype, bytes_per_token: int) -> None:
    """Raise UserError where the token files surely do not fit on the disk, and warn where they may not."""
    pieces = [piece for task in tasks for piece in task.pieces]
    plain, packed = (
        sum(piece.end - piece.start for piece in pieces if piece.source.is_packed == kind) for kind in (False, True)
    )
    least, needed = ((plain + packed * times) // bytes_per_token * dtype.itemsize for times in (1, PACKED))
    free = shutil.disk_usage(out).free
    text = f"the token files take about {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free"
    if least > 2 * free:  # what archives hold is a guess
        raise UserError(f"out = {out}: {text}")
    if needed > free:
        logger.warning("%s: %s", out, text)


def _byte_progress(
    tasks: list[ShardTask], missing: list[ShardTask], progress: Progress | None
) -> Callable[[ShardTask, int], None]:
    """Return a function that adds up the bytes encoded of each shard and reports them of all."""
    if progress is None:
        return lambda task, num_bytes: None
    total = sum(task.num_bytes for task in tasks)
    done = total - sum(task.num_bytes for task in missing)
    progress("encode", done, total)

    def add(task: ShardTask, num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress("encode", min(done, total), total)

    return add


def _digest(sources: SourceList) -> str:
    """Hash every file's path, size, time of change and split."""
    digest = hashlib.sha256()
    for source in sources.files:
        facts = (str(source.path.resolve()), source.name, source.size, source.modified_ns, source.split)
        digest.update(repr(facts).encode())
    return digest.hexdigest()


def _nothing_found(report: CorpusReport, json_key: str) -> str:
    damaged = f"{report.damaged_lines} damaged line(s)"
    text = f"no document in {report.files} file(s): {report.empty_documents} empty, {damaged}"
    if not report.first_damaged:
        return text
    first = report.first_damaged[0]
    return f"{text}, the first in {first['file']} line {first['line']}: {first['reason']} (json_key is {json_key!r})"
