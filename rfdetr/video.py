"""Videos, cameras and streams frame by frame, and videos made of drawn frames; through PyAV, asked for when it is used."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rfdetr.errors import InputError
from rfdetr.extras import import_extra

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv",
                  ".3gp", ".mjpeg", ".ogv")  # fmt: skip
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.I)
TIMEOUT = 20.0  # seconds without anything from an address
WAIT = 0.005  # seconds until a camera is asked again that has no frame yet
CLOCK = 90_000  # ticks a second of the videos that are written
USUAL_RATE = Fraction(25)  # frames a second, where a source does not say

logger = logging.getLogger(__name__)


class Frame(NamedTuple):
    """A picture out of a video."""

    number: int  # from 0
    time: float  # seconds since the first
    pixels: np.ndarray  # (h, w, 3) uint8 RGB, as players show it


def is_video(source: object) -> bool:
    """Tell whether this is a camera's number, an address, or the file of a video, by its ending."""
    if isinstance(source, int) and not isinstance(source, bool):
        return True
    text = os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else ""
    is_camera = text.isdecimal() and not os.path.exists(text)
    return is_camera or ADDRESS.match(text) is not None or text.lower().endswith(VIDEO_SUFFIXES) and not os.path.isdir(text)


class Video:
    """The frames of a video file, a camera (by its number) or an address, one after the other; use it as a context.

    Raises:
        InputError: PyAV is not installed, or the source cannot be opened.
    """

    def __init__(self, source: str | os.PathLike | int) -> None:
        av = import_extra("av", "video", "videos, cameras and streams need PyAV, which")
        self.name, self._av, self.num_damaged = str(source), av, 0
        is_camera, is_address = self.name.isdecimal(), ADDRESS.match(self.name) is not None
        if not is_camera and not is_address and not Path(self.name).is_file():
            raise InputError(f"{self.name}: there is no such file")
        self.is_live = is_camera or is_address
        self._options: dict[str, Any] = {"timeout": TIMEOUT} if is_address else {}
        self._open(_camera(int(self.name)) if is_camera else (self.name, None))

    def _open(self, place: tuple[str, str | None]) -> None:
        try:
            self._container = self._av.open(place[0], format=place[1], **self._options)
            self._stream = self._container.streams.video[0]
        except IndexError:
            raise InputError(f"{self.name}: holds no pictures, only {len(self._container.streams)} other streams") from None
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{self.name}: cannot be opened as a video ({error}); look whether a player shows it") from None
        self._stream.thread_type = "AUTO"
        self.rate = self._stream.average_rate or USUAL_RATE  # frames a second
        self.length = self._stream.frames or None  # as the file says

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *raised: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames; what is damaged is left out, and said at the end."""
        first, number = None, 0
        for frame in self._decoded():
            seconds = number / float(self.rate) if frame.time is None else float(frame.time)
            first = seconds if first is None else first
            turns = round((getattr(frame, "rotation", 0) or 0) / 90)  # quarters, counter-clockwise
            yield Frame(number, seconds - first, np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns)))
            number += 1
        if self.num_damaged:
            logger.warning("%s: %d parts are damaged and were left out", self.name, self.num_damaged)
        if not number:
            raise InputError(f"{self.name}: not a single frame of it can be read")

    def _decoded(self) -> Iterator[Any]:
        error, packets = self._av.error, self._container.demux(self._stream)
        while True:
            try:
                yield from next(packets).decode()
            except StopIteration:
                return
            except error.BlockingIOError:
                time.sleep(WAIT)
                packets = self._container.demux(self._stream)
            except error.InvalidDataError:
                self.num_damaged += 1
            except error.FFmpegError as reason:
                logger.warning("%s: ends here (%s)", self.name, reason)
                return


class VideoWriter:
    """Writes pictures as an MP4 file, H.264 where PyAV has it; the first gives the size."""

    def __init__(self, path: Path, rate: Fraction = USUAL_RATE) -> None:
        self._av = import_extra("av", "video", "videos need PyAV, which")
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        self._container = self._av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream(codec, rate=rate)
        self._stream.pix_fmt, self._stream.codec_context.time_base, self._last = "yuv420p", Fraction(1, CLOCK), -1

    def write(self, picture: Image.Image, seconds: float) -> None:
        """Append a picture that is shown from so many seconds on."""
        pixels = np.asarray(picture)  # of even sides, as codecs want them:
        pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), "edge")
        frame = self._av.VideoFrame.from_ndarray(pixels)
        if self._last < 0:
            self._stream.width, self._stream.height = frame.width, frame.height
        frame = frame.reformat(self._stream.width, self._stream.height, "yuv420p")
        frame.pts = self._last = max(round(seconds * CLOCK), self._last + 1)
        frame.time_base = Fraction(1, CLOCK)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is still waiting, and the end of the file."""
        if self._last >= 0:
            self._container.mux(self._stream.encode(None))
        self._container.close()


def _camera(number: int) -> tuple[str, str]:
    """Return where a system has the camera of a number, and the format that FFmpeg reads it by."""
    if sys.platform == "darwin":
        return str(number), "avfoundation"
    if sys.platform == "win32":
        raise InputError(f"{number}: Windows knows cameras by name only; record a file, or give the address of a stream")
    return f"/dev/video{number}", "v4l2"
