"""`baton backup` and `baton restore`: a copy of an installation while it serves, and the way back."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from pipeline.clock import SystemClock
from pipeline.disk import writing
from pipeline.errors import Conflict, DataError, InvalidInput
from serving.cli.api import AdminClient
from serving.cli.options import Format, Reason, Token
from serving.cli.output import Output, emit, say
from serving.config import Config

if TYPE_CHECKING:
    from serving.wiring.backup import BackupManifest

__all__ = ["backup", "restore"]

ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration file")]


def backup(
    folder: Annotated[Path, typer.Argument(help="New folder for the backup")],
    config: ConfigFile = Path("baton.yaml"),
    server: Annotated[
        str,
        typer.Option("--server", help="Admin API of an installation elsewhere; without it, that of --config is copied"),
    ] = "",
    token: Token = "",
    reason: Reason = "",
    output: Format = Output.table,
) -> None:
    """Copy databases, bundles, the worker's checkpoints, secret, tokens, kill switches and configuration, while it serves.
    With --server the copy is of an installation elsewhere: it comes over the network, and that one's audit has it.

    Example: baton backup /backups/2026-01-31 --config baton.yaml
    """
    from serving.wiring.backup import back_up

    if server:
        made = _fetched(folder, server, token, reason)
    else:
        made = back_up(Config.load(config), config, folder, SystemClock())
    result = {"folder": str(folder), "files": len(made.files), "bytes": made.bytes}
    emit(output, {**result, "left_out": made.left_out}, "", tuple(result), [tuple(result.values())])
    for what in made.left_out:
        say(f"not in it: {what}")


def _fetched(folder: Path, server: str, token: str, reason: str) -> BackupManifest:
    """Bring the backup of a server into a new folder, and verify it there."""
    from serving.wiring.backup import read_backup

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Conflict(f"{folder} is not empty; name a new folder")
    try:
        with writing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with AdminClient(server, token=token).download("/backup", {"reason": reason}) as file, writing(folder):
            _unpack(file, folder)
        return read_backup(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack(file: IO[bytes], folder: Path) -> None:
    """Unpack an archive of files below a folder. Raises: DataError: it is none, or holds something else."""
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                if not member.isreg():
                    raise DataError(f"what came is no backup: {member.name!r} is no file")
                archive.extract(member, folder, filter="data")
    except tarfile.TarError as error:
        raise DataError(f"what came is no whole backup: {error}") from None
    file.read()  # an archive that was cut off after its end says so here


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
