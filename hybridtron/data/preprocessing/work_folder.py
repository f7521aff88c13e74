"""The folder in which a corpus is prepared, OUT/.partial: claimed by one process, and at the end moved into OUT."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybridtron.data.datasets.indexed_dataset import PARTIAL_NAME
from hybridtron.data.preprocessing.report import REPORT_NAME, CorpusReport, read_corpus_report
from hybridtron.errors import UserError
from hybridtron.files import lock, open_to_write, replace_file

LOCK_NAME, SETTINGS_NAME = "lock", "settings.json"
FINAL_NAME = "final"  # the folder of finished files
SETTING_NAMES = {"format": "format of the work folder", "shard_bytes": "shard size", "files": "input files"}


def is_work_folder(partial: Path) -> bool:
    """Return whether a folder is what a preparation works in; other programs name theirs .partial too."""
    return any((partial / name).is_file() for name in (LOCK_NAME, SETTINGS_NAME))


@contextmanager
def claimed(out: Path, settings: dict[str, Any]) -> Iterator[CorpusReport | None]:
    """Make OUT/.partial, or find it with the same `settings`, and keep other processes out of it.

    Yields the report of a preparation that was stopped when everything was done but the last tidying, else None.
    """
    partial, settings_path = out / PARTIAL_NAME, out / PARTIAL_NAME / SETTINGS_NAME
    if out.exists() and not out.is_dir():
        raise UserError(f"out = {out}: is a file; expected a folder that is new or empty")
    content = {path.name for path in out.iterdir()} if out.exists() else set()
    is_ours = REPORT_NAME in content or is_work_folder(partial)  # other programs have folders of that name too
    if content and not (partial.is_dir() and (is_ours or not any(partial.iterdir()))):
        what = "holds a prepared corpus" if REPORT_NAME in content else "is not empty"
        left = "left by the same command when it was stopped"
        raise UserError(f"out = {out}: {what}; expected a folder that is new, empty, or {left}")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock_file = open_to_write(partial / LOCK_NAME)
    except OSError as error:
        raise UserError(f"out = {out}: cannot be written to: {error.strerror}") from None
    with lock_file:
        if not lock(lock_file):
            raise UserError(f"out = {out}: another process is preparing it")
        try:
            begun = json.loads(settings_path.read_text())
        except FileNotFoundError:
            begun = {}
        is_complete = (out / REPORT_NAME).exists()
        if is_complete and begun != settings:
            shutil.rmtree(partial)
            raise UserError(f"out = {out}: holds a prepared corpus; expected a folder that is new or empty")
        differing = [key for key in settings if begun and begun.get(key) != settings[key]]
        if differing:
            names = " and ".join(SETTING_NAMES.get(key, key) for key in differing)
            raise UserError(
                f"out = {out}: {partial} was begun with other {names}; run the command that began it, or delete it"
            )
        if is_complete or (partial / FINAL_NAME / REPORT_NAME).exists():
            (partial / FINAL_NAME).mkdir(exist_ok=True)
            publish(out)
            yield read_corpus_report(out)
            return
        for path in partial.glob("*.writing*"):  # what a killed process had not finished
            shutil.rmtree(path)
        replace_file(settings_path, json.dumps(settings))
        yield None


def publish(out: Path) -> None:
    """Move the finished files into OUT and delete the work folder, in an order that any later call can finish."""
    partial = out / PARTIAL_NAME
    # The report goes last: where it lies, everything does.
    for path in sorted((partial / FINAL_NAME).iterdir(), key=lambda path: path.name == REPORT_NAME):
        os.replace(path, out / path.name)
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != SETTINGS_NAME:
            path.unlink()
    shutil.rmtree(partial)
