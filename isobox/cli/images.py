"""`isobox image`: what sandboxes begin with. Over the API, but for what only the server's own machine can do."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from isobox import calls
from isobox.cli.say import moment, note, print_lines, print_table, say
from isobox.config import Config
from isobox.image import Image, follow, log, to_stderr
from isobox.transport import Transport
from isobox.values import ImageInfo

image_app = typer.Typer(no_args_is_help=True, help="Images: what sandboxes begin with.")
Secret = Annotated[str | None, typer.Option(help="A secret that holds USER:PASSWORD for the registry.")]
AuthHost = Annotated[str | None, typer.Option(help="A further host that the registry may send the password to.")]
ImageArgument = Annotated[str, typer.Argument(help="An image's name or id.")]


_MARKS = {"added": "+", "changed": "~", "removed": "-"}


def _transport() -> Transport:
    return Transport(Config.find(None, None))


def _told(image: ImageInfo) -> None:
    note(f"{image.name}  {image.size_bytes >> 20} MiB  {(image.digest or '')[:19]}  {image.id}")


@image_app.command("ls")
def ls() -> None:
    """List images: yours, and those of the server's machine."""
    transport, rows, cursor = _transport(), [], None
    while True:
        page = transport.send(calls.images("GET", params=calls.without_none({"cursor": cursor})))
        for raw in page["images"]:
            image = ImageInfo.parse(raw)
            source = next(iter(raw["source"]), "")
            size = f"{image.size_bytes >> 20} MiB" if image.size_bytes else ""
            digest = (image.digest or "")[7:19]
            rows.append((image.name, image.state, size, digest, source, moment(image.created_at), image.id))
        if (cursor := page["next_cursor"]) is None:
            break
    print_table(("NAME", "STATE", "SIZE", "DIGEST", "SOURCE", "CREATED", "ID"), rows)


@image_app.command()
def build(
    names: Annotated[list[str], typer.Argument(help="Base images (python, data …); with --file, a new name.")],
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A Dockerfile to build.")] = None,
    context: Annotated[Path | None, typer.Option(help="The folder that it copies from; by default its own.")] = None,
    network: Annotated[str | None, typer.Option(help="What steps may reach: a preset (packages, none …).")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing about images that are ready.")] = False,
) -> None:
    """Build an image from a Dockerfile; or base images, now rather than on first use (as root, on the server)."""
    if file is not None:
        if len(names) != 1:
            raise typer.BadParameter("give the new image one name")
        try:
            image = Image.from_dockerfile(file, context=context)
        except (ValueError, OSError) as error:
            raise typer.BadParameter(f"{file}: {error}") from None
        image = image if network is None else image.with_network(network)
        _told(image.build(names[0], on_log=to_stderr))
        return
    store = _machine_store()
    for name in names:
        if (found := store.ready(name)) is None:
            note(f"building image {name} (once, a minute or so)")
            found = store.ensure(name)
        elif quiet:
            continue
        note(f"{found.name}  {found.size >> 20} MiB  {found.digest[:19]}")


@image_app.command()
def pull(
    reference: Annotated[str, typer.Argument(help="HOST/REPOSITORY:TAG.")],
    name: Annotated[str, typer.Argument(help="What to call it here.")],
    secret: Secret = None,
    auth_host: AuthHost = None,
) -> None:
    """Make an image of one in a registry."""
    image = Image.from_registry(reference, secret=secret, auth_host=auth_host)
    _told(image.build(name, on_log=to_stderr))


@image_app.command()
def push(
    image: ImageArgument,
    reference: Annotated[str, typer.Argument(help="HOST/REPOSITORY:TAG.")],
    secret: Secret = None,
    auth_host: AuthHost = None,
) -> None:
    """Send an image to a registry."""
    body = calls.without_none({"reference": reference, "secret": secret, "auth_host": auth_host})
    call = calls.Call("POST", f"/v1/images/{image}/push", json=body, safe=False, read_timeout_s=None)
    say(_transport().send(call)["digest"])


@image_app.command()
def inspect(image: ImageArgument) -> None:
    """Print all that is known of an image."""
    print_lines(json.dumps(_transport().send(calls.images("GET", f"/{image}")), indent=2) + "\n")


@image_app.command()
def logs(image: ImageArgument) -> None:
    """Print what was told while an image was made, and follow it if it still is."""
    transport = _transport()
    for text in log(transport, image):
        print_lines(text)
    follow(transport, ImageInfo.parse(transport.send(calls.images("GET", f"/{image}"))), None)


@image_app.command()
def diff(older: ImageArgument, newer: ImageArgument) -> None:
    """Print what differs between two images: + added, ~ changed, - removed."""
    found = _transport().send(calls.images("GET", f"/{newer}/diff", params={"from": older}))
    for each in found["changes"]:
        say(f"{_MARKS[each['change']]} {each['path']}")
    if found["truncated"]:
        note("… and more")


@image_app.command()
def rm(image: ImageArgument) -> None:
    """Delete an image of yours; or, as root on the server, one of the machine's."""
    raw = _transport().send(calls.images("GET", f"/{image}"))
    if "machine" in raw["source"]:
        _machine_store().remove(raw["name"])
    else:
        _transport().send(calls.images("DELETE", f"/{image}"))


@image_app.command()
def prune(
    all_tenants: Annotated[bool, typer.Option("--all-tenants", help="Of all, with the operator's key.")] = False,
) -> None:
    """Delete what your builds kept of their steps, and contents that no image has any more."""
    transport = Transport(Config.find_operator()) if all_tenants else _transport()
    transport.send(calls.Call("POST", "/v1/images/prune", read_timeout_s=None))


@image_app.command()
def publish(
    name: Annotated[str, typer.Argument(help="An image of the machine's.")],
    url: Annotated[str, typer.Argument(help="s3://BUCKET/PREFIX or /FOLDER.")],
) -> None:
    """Send an image of the machine's to a store, for other nodes to use part by part: ISOBOX_STORES (as root)."""
    image = _machine_store().elsewhere.publish(name, url, _progress())
    note(f"{image.name}  {image.size >> 20} MiB  {image.digest[:19]}  {url}")


@image_app.command("import")
def import_(name: str, path: Path) -> None:
    """Make an image of the machine's out of a root file system, a `docker save` archive or an OCI layout (as root)."""
    image = _machine_store().import_path(name, path)
    note(f"{image.name}  {image.size >> 20} MiB  {image.digest[:19]}")


def _progress() -> Any:
    from isobox.cli import server

    return server.Progress(note)


def _machine_store() -> Any:
    from isobox.cli import server

    return server.image_store()
