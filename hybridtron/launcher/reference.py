"""Write the reference page of launch files: `python -m hybridtron.launcher.reference > docs/launch_keys.md`."""

from __future__ import annotations

from hybridtron.config.reference import render
from hybridtron.launcher.config import LaunchConfig

INTRO = """Every key of a launch file, generated from the schema (`make docs`); [launch.md](launch.md) says how they
are used. A file may begin with `base: OTHER.yaml`, relative to itself."""


def page() -> str:
    """Return the reference page of all keys of a launch file, as Markdown."""
    return render(LaunchConfig, "Keys of a launch file", INTRO)


if __name__ == "__main__":
    print(page(), end="")
