"""Frames of real Home Assistants, as recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VERSIONS = ("2024.3.3", "2025.4.4", "2026.11.0")

_ROOT = Path(__file__).parent.parent / "recordings"


def recording(version: str, name: str) -> Any:
    """Return one recording, parsed."""
    return json.loads((_ROOT / f"home-assistant-{version}" / f"{name}.json").read_bytes())


def frame(message: object) -> bytes:
    """Return a message as Home Assistant would put it on the wire."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def event_messages(part: object) -> Iterator[dict[str, Any]]:
    """Return every event message anywhere in a recording, in order."""
    match part:
        case {"type": "event", "event": {"event_type": _}}:
            assert isinstance(part, dict)
            yield part
        case dict():
            for inner in part.values():
                yield from event_messages(inner)
        case list():
            for inner in part:
                yield from event_messages(inner)
