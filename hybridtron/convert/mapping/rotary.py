"""Rotary frequencies in the forms that config.json has had, and as keys of our attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridtron.config.nearest import one_of
from hybridtron.config.schema import Strict
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
from hybridtron.mixers.attention.rotary_scaling import LinearScaling, Llama3Scaling, RotaryScaling, YarnScaling

SCALINGS: dict[str, type[Strict]] = {"linear": LinearScaling, "llama3": Llama3Scaling, "yarn": YarnScaling}
_NEEDED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": ("factor",)}
_LENGTH = "original_max_position_embeddings"


def rotary_base(settings: Settings, default: float = 10000.0, *keys: str) -> float:
    """Return the base of the rotary frequencies, in either of the forms that config.json has had.

    Raises UserError for frequencies that are scaled, and for parameters besides `keys` that are not known.
    """
    rotary, kind = _rotary(settings)
    if kind != "default":
        raise UserError(f"{settings.file}: rope_type = {kind!r}: expected 'default', for which there are layers here")
    _check_known(settings, rotary, *keys)
    base = rotary.get("rope_theta")
    return float(settings.get("rope_theta", default) if base is None else base)


def scaled_rotary(
    settings: Settings, default: float = 10000.0, default_scaling: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the keys of attention about rotary frequencies, in either of the forms that config.json has had.

    Args:
        settings: of config.json.
        default: base of the frequencies where none is given.
        default_scaling: how the architecture scales them where nothing is given about them.

    Raises UserError for a kind of scaling, and for parameters of it, that are not known.
    """
    rotary, kind = _rotary(settings)
    if not rotary and default_scaling:
        length = _original_length(settings, default_scaling)
        scaling = {**default_scaling, _LENGTH: length}
        return {"rotary_base": settings.get("rope_theta", default), "rotary_scaling": scaling}
    if kind == "default":
        return {"rotary_base": rotary_base(settings, default)}
    if kind not in SCALINGS:
        raise UserError(f"{settings.file}: rope_type = {kind!r}: expected {one_of(kind, ['default', *SCALINGS])}")
    own = [key for key in SCALINGS[kind].model_fields if key != "type"]
    _check_known(settings, rotary, *own)
    for key in _NEEDED[kind]:
        if rotary.get(key) is None:
            raise UserError(f"{settings.file}: rope_parameters.{key} is missing")
    base = rotary.get("rope_theta")
    scaling = {key: rotary[key] for key in own if rotary.get(key) is not None}
    if _LENGTH in own:
        scaling[_LENGTH] = _original_length(settings, rotary)
    return {
        "rotary_base": float(settings.get("rope_theta", default) if base is None else base),
        "rotary_scaling": {"type": kind, **scaling},
    }


def rotary_settings(settings: Settings) -> Any:
    """Return what config.json says of rotary frequencies, as it stands there; empty for nothing.

    Of two settings transformers takes the older one, rope_scaling (modeling_rope_utils.py).
    """
    return settings.get("rope_scaling") or settings.get("rope_parameters") or {}


def _rotary(settings: Settings) -> tuple[Mapping[str, Any], str]:
    """Return what config.json says of rotary frequencies, and its kind. Raises UserError."""
    rotary = rotary_settings(settings)
    settings.ignore("rope_parameters", "rope_scaling", "rope_theta", _LENGTH)
    if not isinstance(rotary, Mapping):
        raise UserError(f"{settings.file}: rope_parameters = {rotary!r}: expected a mapping")
    return rotary, str(rotary.get("rope_type", rotary.get("type", "default")))


def _original_length(settings: Settings, rotary: Mapping[str, Any]) -> Any:
    """Return the length before stretching, from where transformers takes it (modeling_rope_utils.py): the setting of
    that name beside rope_parameters, else the one in it, else max_position_embeddings. Raises UserError."""
    if _LENGTH in settings.values:
        return settings.need(_LENGTH)
    return rotary[_LENGTH] if rotary.get(_LENGTH) is not None else settings.need("max_position_embeddings")


def _check_known(settings: Settings, rotary: Mapping[str, Any], *keys: str) -> None:
    for key, value in rotary.items():
        if key not in ("rope_theta", "rope_type", "type", *keys) and value is not None:
            raise UserError(f"{settings.file}: rope_parameters.{key} = {value!r}: not known for this architecture")


def rotary_parameters(
    base: float, fraction: float | None = None, scaling: RotaryScaling | None = None
) -> dict[str, Any]:
    """Return the rotary frequencies, and which share of the channels rotates where an architecture has that, as
    transformers 5 writes them and as older readers expect them."""
    share = {} if fraction is None else {"partial_rotary_factor": fraction}
    if scaling is None:
        return {"rope_parameters": {"rope_type": "default", "rope_theta": base, **share}, "rope_theta": base, **share}
    own = scaling.model_dump(exclude={"type"}, exclude_none=True)
    return {"rope_parameters": {"rope_type": scaling.type, "rope_theta": base, **own, **share}, **share}
