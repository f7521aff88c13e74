"""The page of all keys says what the schemas say."""

from typing import Annotated, Literal

import pytest
from pydantic import BeforeValidator, Field

from hybridtron.config.reference import render
from hybridtron.config.schema import Strict, dispatch


class Block(Strict):
    type: str
    width: int = Field(0, exclude=True, description="hidden from users")


class Attention(Block):
    """Looks back."""

    type: Literal["attention"]
    window: int | None = Field(None, ge=1, description="Keys in sight.")


BLOCKS = {"attention": Attention}


class Model(Strict):
    """What is trained.

    More about it.
    """

    blocks: dict[str, Annotated[Block, BeforeValidator(lambda value: dispatch(value, BLOCKS))]]
    rate: float = Field(1e-5, gt=0, le=1, description="One | two.")


class Linear(Strict):
    shape: Literal["linear"] = "linear"


class Flat(Strict):
    shape: Literal["flat", "constant"]


class Run(Strict):
    model: Model
    schedule: Linear | Flat = Field(Linear(), discriminator="shape", description="Rate over time.")
    betas: tuple[float, float] = (0.9, 0.95)


def page(**more):
    return render(Run, "Keys", "All of them.", {"model.blocks": BLOCKS}, **more)


def test_the_page():
    assert page(sections=[("More", "Text.")]) == (
        """\
# Keys

All of them.

## Top level

| Key | Type | Default | Meaning |
|---|---|---|---|
| `model` | a mapping | required | What is trained. |
| `schedule` | a mapping | its defaults | Rate over time. |
| `betas` | a list of two numbers | `[0.9, 0.95]` |  |

## `model`

What is trained.

More about it.

| Key | Type | Default | Meaning |
|---|---|---|---|
| `blocks` | a mapping of names to mappings | required |  |
| `rate` | a number, more than 0, at most 1 | `1.0e-05` | One \\| two. |

The types of `model.blocks.NAME`:

| `type` | |
|---|---|
| [`attention`](#modelblocksname-with-type-attention) | Looks back. |

### `model.blocks.NAME` with `type: attention`

Looks back.

| Key | Type | Default | Meaning |
|---|---|---|---|
| `type` | attention | required | Chooses this table's keys. |
| `window` | a whole number, at least 1, or null | `null` | Keys in sight. |

## `schedule` with `shape: linear`

| Key | Type | Default | Meaning |
|---|---|---|---|
| `shape` | linear | `linear` | Chooses this table's keys. |

## `schedule` with `shape: flat` or `shape: constant`

| Key | Type | Default | Meaning |
|---|---|---|---|
| `shape` | one of flat, constant | required | Chooses this table's keys. |

## More

Text.
"""
    )


def test_the_page_is_always_the_same():
    assert page() == page()


def test_a_registry_for_no_key_is_refused():
    with pytest.raises(ValueError, match=r"no such key in Run: model\.layers"):
        render(Run, "Keys", "", {"model.blocks": BLOCKS, "model.layers": BLOCKS})


def test_a_pattern_is_code_in_which_brackets_make_no_links():
    class Named(Strict):
        name: str = Field("a", pattern="^[a-z][a-z0-9]*$", description="A name.")

    assert "text, matching `^[a-z][a-z0-9]*$`" in render(Named, "Keys", "All of them.", {})
