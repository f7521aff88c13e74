"""Read Megatron-LM's arguments from `common.pt`, which is a pickle, without running what it names."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError, unreadable
from hybridtron.files import read_plain

LARGEST = 64 * 2**20  # bytes of the pickle; the arguments take some kilobytes


class _Inert:
    """An object of some class that the pickle names. It has the state that was pickled, and no behaviour."""

    state: Any = None

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, value: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


class _Namespace(_Inert):
    """An argparse.Namespace."""


class _InertReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Namespace if (module, name) == ("argparse", "Namespace") else _Inert

    def persistent_load(self, identity: Any) -> Any:
        return None  # the values of a tensor


def read_arguments(file: Path) -> dict[str, Any] | None:
    """Return the plain values of `args` in a common.pt; None where it has none.

    Values of other types than None, bool, int, float, text and lists of these are left out. Raises UserError for a file
    that is no such pickle, OSError where the system cannot read it.
    """
    try:
        common = _InertReader(io.BytesIO(_pickle_of(read_plain(file)))).load()
    except OSError:
        raise
    except Exception as error:  # pickle raises almost anything for damaged bytes
        raise unreadable(file, error, str(error)) from None
    if not isinstance(common, dict):
        raise UserError(f"{file}: holds {type(common).__name__}; expected a mapping")
    arguments = common.get("args")
    if not isinstance(arguments, _Namespace) or not isinstance(arguments.state, dict):
        return None
    return {str(key): value for key, value in arguments.state.items() if _is_plain(value)}


def _pickle_of(content: bytes) -> bytes:
    """Return the pickle in a file of torch.save: a zip archive of stored members."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
        if len(members) != 1 or members[0].file_size > LARGEST:
            raise ValueError("expected one data.pkl, as torch.save writes it")
        return archive.read(members[0])


def _is_plain(value: object, depth: int = 4) -> bool:
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(each, depth - 1) for each in value)
    return value is None or isinstance(value, bool | int | float | str)
