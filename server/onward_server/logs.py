"""The log: its lines as JSON, and the settings that clients may change (Triton's logging extension)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import final

from onward_server.errors import RequestError

__all__ = ["JsonLines", "LogValue", "change_log", "log_settings"]

LogValue = bool | int | str

_NAMES = ("onward", "onward_server")
_SWITCHES = ("log_info", "log_warning", "log_error")
_FIXED: Mapping[str, LogValue] = {"log_file": "", "log_format": "default"}


@final
class JsonLines(logging.Formatter):
    """A record as one line: a JSON object with time, level, logger, and a message or an entry's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{when}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        entry = getattr(record, "entry", None)
        line |= entry if isinstance(entry, dict) else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_settings() -> dict[str, LogValue]:
    """Those in force."""
    level = logging.getLogger(_NAMES[1]).getEffectiveLevel()
    return {
        "log_file": _FIXED["log_file"],
        "log_info": level <= logging.INFO,
        "log_warning": level <= logging.WARNING,
        "log_error": level <= logging.ERROR,
        "log_verbose_level": int(level <= logging.DEBUG),
        "log_format": _FIXED["log_format"],
    }


def change_log(values: Mapping[str, LogValue]) -> dict[str, LogValue]:
    """Change settings: levels can be, file and format are the server's; what is in force then.

    Raises:
        RequestError: names the setting; nothing has changed.
    """
    wanted = log_settings()
    for name, value in values.items():
        if name not in wanted:
            raise RequestError(f"settings[{name[:64]!r}] is unknown; there are {', '.join(wanted)}")
        if name in _FIXED and value != _FIXED[name]:
            raise RequestError(f"settings[{name!r}] cannot be changed: the log goes to standard error")
        if name in _SWITCHES and not isinstance(value, bool):
            raise RequestError(f"settings[{name!r}] is {value!r}; give true or false")
        if name == "log_verbose_level" and (
            isinstance(value, bool) or not isinstance(value, int) or value < 0
        ):
            raise RequestError(f"settings[{name!r}] is {value!r}; give a whole number from 0")
        wanted[name] = value
    level = logging.CRITICAL
    for name, lower in zip(reversed(_SWITCHES), (logging.ERROR, logging.WARNING, logging.INFO), strict=True):
        if wanted[name]:
            level = lower
    if wanted["log_verbose_level"]:
        level = logging.DEBUG
    for name in _NAMES:
        logging.getLogger(name).setLevel(level)
    return log_settings()
