"""What the client's distribution takes from beside its folder: the protocol's messages, and the version.

A source distribution holds both, so that a wheel can be built from it alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface


def beside(root: str, name: str, inside: str) -> Path:
    """A path of the repository, or the copy of it that a source distribution has."""
    whole = Path(root).parent / inside / name
    return whole if whole.exists() else Path(root) / name


class Messages(BuildHookInterface[BuilderConfig]):
    """Puts `onward_protos` in."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        included = build_data["force_include"]
        included[str(beside(self.root, "onward_protos", "protos"))] = "onward_protos"
        if self.target_name == "sdist":
            included[str(beside(self.root, "version.py", "runtime/onward"))] = "version.py"


class Version(MetadataHookInterface):
    """The version is that of the whole project."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = beside(self.root, "version.py", "runtime/onward").read_text("utf-8")
        found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
        if found is None:
            raise ValueError("version.py has no line __version__ = ...")
        metadata["version"] = found[1]
