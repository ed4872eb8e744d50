"""``offgrid-llama batch``: the requests of a file, answered into another one, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offgrid_llama import store

from . import exits, output
from .exits import UsageError
from .options import Verbose
from .serve import fetch, require_packages

if TYPE_CHECKING:
    from offgrid_llama.server import Settings
    from offgrid_llama.server.batches.lines import BatchLine

__all__ = ["batch"]

MAX_LINE_BYTES = 8 * 2**20
MAX_FAULTS_TOLD = 5


def batch(
    requests: Annotated[
        Path,
        typer.Argument(
            metavar="IN.jsonl",
            exists=True,
            dir_okay=False,
            show_default=False,
            help="A request on each line, as OpenAI's batches have them: custom_id, method, url, body.",
        ),
    ],
    responses: Annotated[
        Path,
        typer.Argument(
            metavar="OUT.jsonl",
            dir_okay=False,
            show_default=False,
            help="The responses, in the order in which they come. What it has already is not done again.",
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="[NAME=]MODEL",
            show_default=store.DEFAULT_MODEL,
            help="A name or a file; may be repeated. With one model, it answers whatever model a request names.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A TOML file of settings, as of `serve`.")] = None,
    n_ctx: Annotated[int | None, typer.Option(min=1, help="Positions of a model's context, for all requests.")] = None,
    n_parallel: Annotated[
        int | None, typer.Option(min=1, max=256, help="Requests at a time, of each model.", show_default="8")
    ] = None,
    n_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a model.")] = None,
    verbose: Verbose = False,
) -> None:
    """Answer the requests of a file. A second run goes on where the first one ended."""
    require_packages()
    lines = _read(requests)
    given = {"n_ctx": n_ctx, "n_parallel": n_parallel, "n_threads": n_threads}
    settings = _settings(config, model or [], {name: value for name, value in given.items() if value is not None})
    done = _done(responses)
    todo = [line for line in lines if line.custom_id not in done]
    n_before = len(lines) - len(todo)
    if n_before:
        output.err(f"{n_before} of {len(lines)} requests are answered already")
    fetch(settings.models)
    n_failed = asyncio.run(_run(settings, todo, responses)) if todo else 0
    output.out(f"{responses}: {len(todo)} responses, {n_failed} of them errors")
    if n_failed:
        raise typer.Exit(exits.FAILURE)


def _read(path: Path) -> list[BatchLine]:
    """Return the requests of a file. Raises UsageError that tells of the first lines that are none."""
    from offgrid_llama.server.api_error import ApiError
    from offgrid_llama.server.batches.lines import read_line

    found: dict[str, BatchLine] = {}
    faults: list[str] = []
    for number, data in _lines(path):
        try:
            line = read_line(data, MAX_LINE_BYTES)
            if line.custom_id in found:
                raise ApiError(400, f"custom_id: {line.custom_id!r} comes a second time")
            found[line.custom_id] = line
        except ApiError as error:
            faults.append(f"line {number}: {error.message}")
    if faults:
        more = f", and {len(faults) - MAX_FAULTS_TOLD} more" if len(faults) > MAX_FAULTS_TOLD else ""
        raise UsageError(f"{path}: {'; '.join(faults[:MAX_FAULTS_TOLD])}{more}")
    return list(found.values())


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that are not empty, each with its number."""
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            if data.strip():
                yield number, data.strip()


def _done(path: Path) -> set[str]:
    """Return the names of the requests that a file has responses of. A last line that was cut is removed from it."""
    from offgrid_llama.server.batches.lines import custom_id_of

    if not path.exists():
        return set()
    found: set[str] = set()
    end = 0
    with path.open("rb+") as file:
        for line in file:
            custom_id = custom_id_of(line) if line.endswith(b"\n") else None
            if custom_id is None and line.endswith(b"\n"):
                raise UsageError(f"{path} has a line that is no response of a batch; give another file")
            if custom_id is not None:
                found.add(custom_id)
                end += len(line)
        file.truncate(end)
    return found


def _settings(config: Path | None, models: list[str], given: dict[str, Any]) -> Settings:
    from offgrid_llama.server import ModelSettings, Settings, SettingsError

    try:
        settings = Settings.load(config, models=models or None)
        asked = settings.models or (ModelSettings(store.DEFAULT_MODEL),)
        made = tuple(replace(each, **given) for each in asked)
        return replace(settings, models=made, any_model=len(made) == 1 or settings.any_model, api_key_file=None)
    except SettingsError as error:
        raise UsageError(str(error)) from error


async def _run(settings: Settings, todo: list[BatchLine], path: Path) -> int:
    """Answer requests into a file; return how many responses are errors."""
    from offgrid_llama.server.batches.runner import BatchRunner
    from offgrid_llama.server.supervision.supervisor import Supervisor

    supervisor = Supervisor(settings)
    n_at_a_time = 2 * sum(model.n_parallel for model in settings.models)  # so that none of a model's sequences waits
    n_failed = n_done = 0
    try:
        with path.open("ab") as file, output.steps("answering", "requests") as progress:

            def answered(line: bytes, status: int) -> None:
                nonlocal n_failed, n_done
                file.write(line)
                file.flush()  # what is told as done is not lost when this process dies
                n_done += 1
                n_failed += status != 200
                progress(n_done, len(todo))

            runner = BatchRunner(supervisor, n_at_a_time, ignore_unknown=settings.ignore_unknown)
            await runner.run(todo, answered)
    finally:
        await supervisor.close()
    return n_failed
