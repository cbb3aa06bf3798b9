"""Images in and out: from a registry or a file into a tree, from a tree to a registry."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Final

from fs.errors import ImageInvalid
from fs.guarded import Access
from fs.oci import config, export, registry
from fs.oci.archive import Saved
from fs.oci.layers import Sink, apply
from fs.oci.login import Login
from fs.oci.reference import Reference
from fs.oci.registry import Registry
from fs.progress import Progress
from fs.tree import Limits, Node, Tree

_DOWNLOADS: Final = 3
_LAYERS_MAX: Final = 500


def pull(
    reference: Reference,
    access: Access,
    tree: Tree,
    sink: Sink,
    reserve: Callable[[int], AbstractContextManager[None]],
    *,
    limits: Limits,
    login: Login | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Fetch an image and lay its layers into a tree: its config. reserve makes room for so many bytes of them."""
    with (
        Registry(reference, access, progress, login=login) as remote,
        progress.stopping(remote.abort),
        tempfile.TemporaryDirectory(prefix="isobox-pull-") as folder,
    ):
        manifest, digest = remote.manifest()
        progress.say(f"{reference}: {digest}")
        layers = list(registry.layers_of(manifest))
        total = sum(layer.size for layer in layers)
        if len(layers) > _LAYERS_MAX or total > limits.total_bytes:
            raise ImageInvalid(f"{reference} has {len(layers)} layers of {total >> 20} MiB", hint="that is too much")
        raw = remote.config(registry.Blob.of(manifest["config"]))
        expected = config.diff_ids(raw)
        with reserve(total), ThreadPoolExecutor(_DOWNLOADS) as pool:
            files = [Path(folder) / str(number) for number in range(len(layers))]
            coming = [pool.submit(remote.download, *each) for each in zip(layers, files, strict=True)]
            try:
                for number, (layer, file, done) in enumerate(zip(layers, files, coming, strict=True)):
                    done.result()
                    progress.say(f"layer {number + 1} of {len(layers)}: {layer.digest[7:19]}, {layer.size >> 10} KiB")
                    with file.open("rb") as opened:
                        _lay(opened, tree, sink, limits, expected, number, layer.digest[:19], progress)
                    file.unlink()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return config.read(raw)


def load(saved: Saved, tree: Tree, sink: Sink, *, limits: Limits, progress: Progress) -> dict[str, Any]:
    """Lay the layers of an image in a file into a tree: its config."""
    expected = config.diff_ids(saved.config)
    for number, layer in enumerate(saved.layers):
        progress.say(f"layer {number + 1} of {len(saved.layers)}: {layer.title}")
        with layer.open(progress.check) as opened:
            _lay(opened, tree, sink, limits, expected, number, layer.title, progress)
    return config.read(saved.config)


def _lay(
    opened: BinaryIO,
    tree: Tree,
    sink: Sink,
    limits: Limits,
    expected: list[str],
    number: int,
    title: str,
    progress: Progress,
) -> None:
    found = apply(opened, tree, sink, limits=limits, keep_setuid=False, check=progress.check)
    if number < len(expected) and found != expected[number]:
        raise ImageInvalid(f"layer {title} is not what the image's config says", hint="it is damaged")


def push(
    reference: Reference,
    access: Access,
    tree: Tree,
    contents: Callable[[Node], Iterator[bytes]],
    meant: dict[str, Any],
    *,
    login: Login | None = None,
    progress: Progress,
) -> str:
    """Send a tree as an image of one layer: the digest of its manifest."""
    with (
        Registry(reference, access, progress, login=login) as remote,
        progress.stopping(remote.abort),
        tempfile.TemporaryDirectory(prefix="isobox-push-") as folder,
    ):
        layer, described = Path(folder) / "layer", Path(folder) / "config"
        progress.say("packing the layer")
        diff_id = export.write_layer(tree, contents, layer)
        described.write_bytes(json.dumps(config.write(meant, diff_id), sort_keys=True).encode())
        descriptors = []
        for path, media_type in ((described, registry.CONFIG), (layer, registry.LAYER)):
            with path.open("rb") as file:
                digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            progress.say(f"sending {digest[7:19]}, {path.stat().st_size >> 10} KiB")
            remote.upload(digest, path)
            descriptors.append({"mediaType": media_type, "digest": digest, "size": path.stat().st_size})
        manifest = {"schemaVersion": 2, "mediaType": registry.MANIFEST, "config": descriptors[0]}
        return remote.put_manifest(json.dumps(manifest | {"layers": descriptors[1:]}, sort_keys=True).encode())
