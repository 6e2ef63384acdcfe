"""Fetching shards from a web server, each once and whole."""

import hashlib
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from conadv.errors import DataError
from conadv.trainer.data.cache import Say, cache_dir, locked, write_whole
from conadv.trainer.data.sources.manifest import MANIFEST, read_manifest
from conadv.trainer.data.sources.tar import index_tar

ATTEMPTS = 3
PAUSE_SECONDS = 2.0
SILENT_SECONDS = 60.0
"""So long a server may say nothing before an attempt is given up."""
_WAIT_SECONDS = 7 * 24 * 3600.0
_PIECE = 1 << 20


def fetch_shards(urls: Sequence[str], say: Say) -> list[Path]:
    """Bring shards into a folder below `cache_dir`, and the manifest beside them if there is one.

    A shard that is there already is not fetched again. One that was cut off leaves nothing behind
    and is fetched anew; whole ones stay, so a repeated call goes on.

    Args:
        urls: addresses that begin with http:// or https:// and end in .tar, all of one folder.
        say: told a line of text per shard.

    Returns:
        The local files, in the order of the addresses.

    Raises:
        DataError: a shard cannot be had or is no whole tar archive, or the disk is full.
    """
    bases = {_base(url) for url in urls}
    if len(bases) != 1:
        raise DataError(
            f"{urls[0]}: the shards lie in {len(bases)} folders of servers; give each folder as a "
            "source of its own."
        )
    [base] = bases
    for url in urls:
        if not _file(url).endswith(".tar"):
            raise DataError(
                f"{url}: the address of a shard ends in .tar, such as "
                "https://host/shard-{000000..000099}.tar."
            )
    folder = cache_dir() / "shards" / hashlib.sha256(base.encode()).hexdigest()[:16]
    paths = [folder / _file(url) for url in urls]
    if all(path.exists() for path in paths):
        return paths
    with locked(folder, say, _WAIT_SECONDS):
        _fetch_manifest(urllib.parse.urljoin(urls[0], MANIFEST), folder)
        for number, (url, path) in enumerate(zip(urls, paths, strict=True), 1):
            if not path.exists():
                say(f"fetching shard {number:,} of {len(urls):,}: {url}")
                _fetch(url, path)
    return paths


def _fetch_manifest(url: str, folder: Path) -> None:
    """Bring the manifest that may lie beside the shards; one that is of no use is not kept."""
    path = folder / MANIFEST
    if path.exists():
        return
    _fetch(url, path, optional=True)
    try:
        manifest = read_manifest(folder)
    except DataError:  # some servers answer with a page, whatever is asked
        path.unlink(missing_ok=True)
        return
    if manifest is not None and not manifest.complete:
        path.unlink(missing_ok=True)
        raise DataError(f"{url}: these shards are still being made. Call again when they are.")


def _base(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rpartition('/')[0]}"


def _file(url: str) -> str:
    return urllib.parse.urlsplit(url).path.rpartition("/")[2]


def _fetch(url: str, path: Path, *, optional: bool = False) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        if attempt > 1:
            time.sleep(PAUSE_SECONDS)
        try:
            write_whole(path, lambda file: _copy(url, file, archive=not optional))
            return
        except _Refused as error:
            if optional:
                return
            raise DataError(f"{url}: the server says {error}. Check the address.") from error
        except _Failed as error:
            reason = str(error)
    raise DataError(
        f"{url} could not be fetched, tried {ATTEMPTS} times ({reason}): check the network and "
        "call again. Shards that are here already are kept."
    )


class _Failed(Exception):
    """An attempt that may be repeated. No OSError, which would be taken for one of the disk."""


class _Refused(Exception):
    """The server does not give it: asking again would change nothing."""


def _copy(url: str, file: BinaryIO, *, archive: bool) -> None:
    """Write what an address holds into an open file; see that it is whole."""
    try:
        answer = urllib.request.urlopen(url, timeout=SILENT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        kind = _Refused if 400 <= error.code < 500 else _Failed
        raise kind(f"{error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Failed(str(getattr(error, "reason", error))) from error
    with answer:
        length, received = answer.headers.get("Content-Length"), 0
        while piece := _piece(answer, received):
            received += len(piece)
            file.write(piece)
    if length is not None and received != int(length):
        raise _Failed(f"cut off after {received:,} of {int(length):,} bytes")
    if archive:
        file.flush()
        try:
            index_tar(Path(file.name))
        except DataError as error:
            raise _Failed(f"what came is no whole tar archive: {error.__cause__}") from error


def _piece(answer: Any, received: int) -> bytes:
    try:
        piece: bytes = answer.read(_PIECE)
    except (OSError, http.client.HTTPException) as error:
        raise _Failed(f"cut off after {received:,} bytes: {error}") from error
    return piece
