"""``python -m offgrid_llama.compat.llama_cpp.server``: the server, with the flags of llama-cpp-python's."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from offgrid_llama.errors import StoreError

from .fields import FIELDS, Field

__all__ = ["main"]

FAILURE, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes."""
PROG = "llama_cpp.server"
_LOGGER = "offgrid_llama.server"
_SHOWN = {"text": "TEXT", "cache type": "ram|disk", "switch": "true|false", "switch or integer": "true|false",
          "integer": "N", "number": "X", "numbers": "X ...", "texts": "TEXT ...", "object": "JSON"}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Serve until a signal says to stop, and return the exit code; an error is a line on stderr."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write("\n".join([*_help(), ""]))
        return 0
    try:
        _serve(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        return _told(f"the server needs {error.name}: pip install 'offgrid-llama[server]'", FAILURE)
    except StoreError as error:
        return _told(error.message, FAILURE)
    except ValueError as error:
        return _told(str(error), USAGE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _told(f"{where}{error.strerror or error}", FAILURE)
    return 0


def _told(message: str, code: int) -> int:
    sys.stderr.write(f"{PROG}: error: {' '.join(message.split())}\n")
    return code


def _serve(arguments: Sequence[str]) -> None:
    from offgrid_llama.server.supervision.specs import launch_first

    from .conversion import notes_of, settings_of
    from .sources import read

    given = read(arguments, os.environ)
    settings = settings_of(given)
    launch_first(settings)  # its worker loads the model while the server is imported
    from offgrid_llama.server import run

    def listening(url: str) -> None:
        for note in dict.fromkeys(notes_of(given)):
            logging.getLogger(_LOGGER).warning("%s", note)
        sys.stderr.write(f"listening on {url}\n")

    run(settings, on_listening=listening)


def _help() -> list[str]:
    """Return a line for each flag."""
    return [
        "python -m offgrid_llama.compat.llama_cpp.server takes the flags of llama-cpp-python's server:",
        "",
        *map(_line, FIELDS),
        "  --config_file TEXT: A file with these settings in JSON or YAML, and models in a list; then no flag counts.",
        "",
        "Each is a variable of the environment, too, in upper or lower case. HOST and PORT come before the flags.",
    ]


def _line(field: Field) -> str:
    default = "" if field.default in (None, "") else f" ({str(field.default).lower()})"
    return f"  --{field.name} {_SHOWN[field.kind]}: {field.line}{default}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
