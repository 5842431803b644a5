"""Published weights by name: downloaded once into a cache folder, checked, resumed where the connection was cut."""

import contextlib
import difflib
import http.client
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from rfdetr.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows, where two processes then may download the same file twice
    fcntl = None

logger = logging.getLogger(__name__)

BASE_URL = "https://storage.googleapis.com/rfdetr/"
URL_VARIABLE = "RFDETR_WEIGHTS_URL"  # another place with the same files, a mirror
CACHE_VARIABLE = "RF_HOME"

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30  # seconds without an answer
_ATTEMPTS = 5  # connections for one file, as long as each brings something
_WAIT = 1.0  # seconds before the second connection, then twice as long each time


class Published(NamedTuple):
    """Where a file lies below the base address, and its checksum."""

    path: str
    md5: str


PUBLISHED = {
    "rf-detr-base.pth": Published("rf-detr-base-coco.pth", "b4d3ce46099eaed50626ede388caf979"),
    "rf-detr-base-o365.pth": Published(
        "top-secret-1234/lwdetr_dinov2_small_o365_checkpoint.pth", "d93f4921ccbb0f0a2e4364bed290892b"),
    "rf-detr-base-2.pth": Published("rf-detr-base-2.pth", "462f4d9df407ddc1812f42614040e913"),
    "rf-detr-large.pth": Published("rf-detr-large.pth", "992c8e862aa733a7bb2777e45d49f1a0"),
    "rf-detr-large-2026.pth": Published("rf-detr-large-2026.pth", "5cb72153541cbcb9aa6efa26222acc75"),
    "rf-detr-nano.pth": Published("nano_coco/checkpoint_best_regular.pth", "fb6504cce7fbdc783f7a46991f07639f"),
    "rf-detr-small.pth": Published("small_coco/checkpoint_best_regular.pth", "fb37061c1af7bace359c91b723a8d5c1"),
    "rf-detr-medium.pth": Published("medium_coco/checkpoint_best_regular.pth", "7223f764a87b863f02eb8d52bf0ce2ee"),
    "rf-detr-seg-preview.pt": Published("rf-detr-seg-preview.pt", "e35820c28fb86080558123e47a5e49ca"),
    "rf-detr-seg-nano.pt": Published("rf-detr-seg-n-ft.pth", "9995497791d0ff1664a1d9ddee9cfd20"),
    "rf-detr-seg-small.pt": Published("rf-detr-seg-s-ft.pth", "0a2a3006381d0c42853907e700eadd08"),
    "rf-detr-seg-medium.pt": Published("rf-detr-seg-m-ft.pth", "a49af1562c3719227ad43d0ca53b4c7a"),
    "rf-detr-seg-large.pt": Published("rf-detr-seg-l-ft.pth", "275f7b094909544ed2841c94a677d07e"),
    "rf-detr-seg-xlarge.pt": Published("rf-detr-seg-xl-ft.pth", "3693b35d0eea86ebb3e0444f4a611fba"),
    "rf-detr-seg-xxlarge.pt": Published("rf-detr-seg-2xl-ft.pth", "040bc3412af840fa8a47e0ff69b552ba"),
}
_RESTRICTED = ("rf-detr-xlarge", "rf-detr-xxlarge", "rf-detr-2xlarge")
_KEYPOINTS = "rf-detr-keypoint"


def published_name(variant: str) -> str | None:
    """Return the name of the published weights of a variant, None where there are none."""
    names = {"large": "rf-detr-large-2026.pth", "large_deprecated": "rf-detr-large.pth", "seg_2xlarge": "rf-detr-seg-xxlarge.pt"}
    suffix = ".pt" if variant.startswith("seg_") else ".pth"
    name = names.get(variant, f"rf-detr-{variant.replace('_', '-')}{suffix}")
    return name if name in PUBLISHED else None


def find_weights(name: str | os.PathLike) -> Path:
    """Return the path of a weights file: the user's own file, or a published one, downloaded if it is not in the cache yet.

    They come from where they are published, or from the mirror at $RFDETR_WEIGHTS_URL, and are kept in $RF_HOME, or else in a
    folder in the user's cache.

    Args:
        name: a path, or the name of a published file, such as rf-detr-nano.pth. An existing file always comes first.
    """
    path = Path(name)
    _refuse(path.name)
    if path.exists() or path.name != str(name):
        return path
    if path.name not in PUBLISHED:
        near = difflib.get_close_matches(path.name, PUBLISHED, n=1)
        if near and path.name.startswith("rf-detr"):
            raise InputError(f"weights {path.name}: neither a file here nor a published name; did you mean {near[0]}? "
                             f"Published are {', '.join(PUBLISHED)}")
        return path
    return _download(path.name, PUBLISHED[path.name], os.environ.get(URL_VARIABLE) or BASE_URL, cache_home())


def cache_home() -> Path:
    """Return the folder where downloaded weights are kept: $RF_HOME, else one in the user's cache."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rfdetr"


def _refuse(name: str) -> None:
    stem = name.rsplit(".", 1)[0]
    if stem in _RESTRICTED:
        raise InputError(f"weights {name}: the XL and 2XL detectors are published under the Platform Model License 1.0, "
                         "which restricts their use, and not under Apache-2.0; they are not supported. "
                         "Use rf-detr-large-2026.pth or smaller")
    if stem.startswith(_KEYPOINTS):
        raise InputError(f"weights {name}: a keypoint model, which is not supported; use detection or segmentation weights")


def _download(name: str, published: Published, base_url: str, folder: Path) -> Path:
    """Return the checked file ``folder/name``; a file that is already there is never written to."""
    target, url = folder / name, base_url.rstrip("/") + "/" + published.path
    by_hand = f"To put it there by hand: download {url} and save it as {target} (md5 {published.md5})"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f".{name}.lock"):
            if not target.exists():
                _fetch(name, url, published.md5, target, by_hand)
                return target
    except OSError as error:
        raise InputError(f"weights {name}: cannot write to the cache folder {folder} ({error}); set {CACHE_VARIABLE} to another "
                         "folder, or download the file from "
                         f"{url} (md5 {published.md5}) and give its path") from error
    found = calculate_md5(target)
    if found != published.md5:
        raise InputError(f"weights {name}: {target} has the md5 {found}, the published file {published.md5}. It is left as it "
                         "is: move it away to download the published one, or give its path in full to use it all the same")
    return target


def _fetch(name: str, url: str, md5: str, target: Path, by_hand: str) -> None:
    """Download to ``<name>.part``, going on where an earlier try ended; move it to its place once the checksum is right."""
    part = target.with_name(target.name + ".part")
    resumed = part.exists()
    logger.info("downloading %s to %s", url, target)
    try:
        _receive_all(url, part, name)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not an address
        size = part.stat().st_size if part.exists() else 0
        kept = f" {size:,} bytes are kept, the next try goes on from there." if size else ""
        raise InputError(f"weights {name}: cannot download {url} ({_text(error)}).{kept} {by_hand}") from error
    found = calculate_md5(part)
    if found != md5:
        part.unlink()
        if resumed:  # the old part may have been of another file
            return _fetch(name, url, md5, target, by_hand)
        raise InputError(f"weights {name}: what came from {url} has the md5 {found}, expected {md5}; it was thrown away. "
                         f"{by_hand}")
    os.replace(part, target)
    logger.info("downloaded and checked %s", target)
    return None


def _receive_all(url: str, part: Path, name: str) -> None:
    """Connect until the whole file is there; give up when a connection brings nothing."""
    for attempt in range(_ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            return _receive(url, part, name)
        except (OSError, http.client.HTTPException) as error:
            after = part.stat().st_size if part.exists() else 0
            if after <= before or attempt == _ATTEMPTS - 1:
                raise
            logger.warning("%s: connection lost after %d bytes (%s), going on", name, after, _text(error))
            time.sleep(_WAIT * 2**attempt)
    return None


def _receive(url: str, part: Path, name: str) -> None:
    """Append the rest of the file to ``part``, or all of it where the server cannot send a rest."""
    offset = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            return  # nothing is left to send; the checksum decides
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            offset = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else offset + int(length)
        with open(part, "ab" if offset else "wb") as file, tqdm(
            total=total, initial=offset, unit="B", unit_scale=True, desc=name, disable=None  # only on a terminal
        ) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size < total:
        raise ConnectionError(f"connection cut after {size:,} of {total:,} bytes")


def _text(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    code = f"HTTP {error.code} " if isinstance(error, urllib.error.HTTPError) else ""
    return f"{code}{reason or error or type(error).__name__}"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process of this machine download a file while the others wait for it."""
    with open(path, "ab") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
