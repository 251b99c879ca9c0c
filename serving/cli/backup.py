"""`baton backup` and `baton restore`: a copy of an installation while it serves, and the way back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from pipeline.clock import SystemClock
from pipeline.errors import InvalidInput
from serving.cli.options import Format
from serving.cli.output import Output, emit, say
from serving.config import Config

__all__ = ["backup", "restore"]

ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration file")]


def backup(
    folder: Annotated[Path, typer.Argument(help="New folder for the backup")],
    config: ConfigFile = Path("baton.yaml"),
    output: Format = Output.table,
) -> None:
    """Copy databases, bundles, the worker's checkpoints, secret, tokens, kill switches and configuration, while it serves.

    Example: baton backup /backups/2026-01-31 --config baton.yaml
    """
    from serving.wiring.backup import back_up

    made = back_up(Config.load(config), config, folder, SystemClock())
    result = {"folder": str(folder), "files": len(made.files), "bytes": made.bytes}
    emit(output, {**result, "left_out": made.left_out}, "", tuple(result), [tuple(result.values())])
    for what in made.left_out:
        say(f"not in it: {what}")


def restore(
    folder: Annotated[Path, typer.Argument(help="Folder of `baton backup`")],
    config: ConfigFile = Path("baton.yaml"),
    replace: Annotated[bool, typer.Option(help="Move a home that is there aside first")] = False,
    output: Format = Output.table,
) -> None:
    """Bring a backup back into the home of the configuration, which is that of the backup where there is none here.

    Example: baton restore /backups/2026-01-31 --config baton.yaml
    """
    from serving.wiring import backup as backups

    if not config.exists():
        backups.read_backup(folder)
        if not (folder / backups.CONFIG).exists():
            raise InvalidInput(f"there is no {config}, and none in the backup: write one", "config")
        config.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / backups.CONFIG, config)
    settings = Config.load(config)
    made, aside = backups.restore(settings, folder, SystemClock(), replace=replace)
    kept = backups.restore_named(settings, folder, made)
    result = {"home": str(settings.home), "files": len(made.files), "bytes": made.bytes, "aside": str(aside or "")}
    emit(output, {**result, "left_out": made.left_out, "kept": kept}, "", tuple(result), [tuple(result.values())])
    for what in made.left_out:
        say(f"not in it: {what}")
    for what in kept:
        say(what)
    if (folder / backups.STATE).exists():
        say(
            f"the state is in {settings.state.url or 'a Redis'}: `baton state restore --backup` fills it where it is empty"
        )
