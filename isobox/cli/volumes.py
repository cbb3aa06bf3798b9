"""`isobox volume`: files that outlive sandboxes."""

from pathlib import Path
from typing import Annotated

import typer

from isobox.cli.say import moment, print_contents, print_table, say
from isobox.values import time_of
from isobox.volume import Volume

volume_app = typer.Typer(no_args_is_help=True, help="Files that outlive sandboxes.")
Name = Annotated[str, typer.Argument(help="The volume's name.")]


@volume_app.command()
def create(name: Name, quota_mb: Annotated[int, typer.Option("--quota", help="MiB.")] = 1024) -> None:
    """Make an empty volume."""
    say(Volume.create(name, quota_mb=quota_mb, exist_ok=False).name)


@volume_app.command()
def ls(name: Annotated[str | None, typer.Argument()] = None, path: Annotated[str, typer.Argument()] = "/") -> None:
    """List volumes, or the files of one."""
    if name is None:
        rows = []
        for volume in Volume.list():
            info = volume.info
            size = f"{info['size_bytes'] / (1 << 20):.1f} of {info['quota_mb']} MiB"
            updated = moment(time_of(info["updated_at"]))
            rows.append((volume.name, size, str(info["version"]), info["writer"] or "", updated))
        print_table(("NAME", "SIZE", "VERSION", "WRITER", "CHANGED"), rows)
        return
    files = Volume.get(name).files(path)
    print_table(
        ("MODE", "SIZE", "MODIFIED", "NAME"),
        [(each.mode, str(each.size), moment(each.modified_at), each.name) for each in files],
    )


@volume_app.command()
def put(name: Name, source: Path, path: Annotated[str, typer.Argument(help="A folder of the volume.")] = "/") -> None:
    """Copy a local folder's contents, or one file, into a volume."""
    Volume.get(name).upload(source, path)


@volume_app.command()
def get(name: Name, target: Path, path: Annotated[str, typer.Argument(help="A folder of the volume.")] = "/") -> None:
    """Copy a volume's files into a local folder."""
    Volume.get(name).download(target, path)


@volume_app.command()
def cat(name: Name, path: str) -> None:
    """Print a file of a volume."""
    print_contents(Volume.get(name).read(path))


@volume_app.command()
def snapshot(name: Name, title: Annotated[str | None, typer.Argument(help="A name for it.")] = None) -> None:
    """Keep a volume's files as they are."""
    say(Volume.get(name).snapshot(title))


@volume_app.command()
def restore(name: Name, snapshot: str) -> None:
    """Let a volume's files be again what a snapshot kept."""
    Volume.get(name).restore(snapshot)


@volume_app.command()
def rm(name: Name) -> None:
    """Delete a volume and its snapshots."""
    Volume.get(name).delete()
