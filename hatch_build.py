"""Makes the package's description of README.md: on an index, links to files of a checkout lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from hatchling.metadata.plugin.interface import MetadataHookInterface

# A link or an image whose target is neither a URL nor a heading of the page.
_RELATIVE: Final = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?!https?://|mailto:|#)(?P<target>[^)\s]+)\)")


class Readme(MetadataHookInterface):
    """Sets the metadata's ``readme``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add README.md as an index shows it."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": description(text, source)}


def description(readme: str, source: str | None) -> str:
    """Return README.md with absolute links.

    :param source: the URL of the tree that the links are relative to. Without one, links become their text and the name
        of the file, and images are left out.
    """

    def absolute(link: re.Match[str]) -> str:
        text, target = link["text"], link["target"]
        if source:
            return f"{link['image']}[{text}]({source.rstrip('/')}/{target})"
        if link["image"]:
            return ""
        return text if text in target else f"{text} (`{target}`)"

    # Not in code blocks: they show what people type.
    parts = re.split(r"(^```.*?^```$)", readme, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [_RELATIVE.sub(absolute, part) for part in parts[::2]]
    return re.sub(r"\n{3,}", "\n\n", "".join(parts))
