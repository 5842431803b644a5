"""How every command ends: bad input in one message, and an exit code that says what happened."""

import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from enum import IntEnum

from rfdetr.errors import InputError, printable
from rfdetr.extras import installed_version

SECONDS_FOR_THE_FIRST = 5  # that other processes leave the first one to report an error
PACKAGES = ("rfdetr", "engine", "hooks")


class ExitCode(IntEnum):
    """What a command's exit code means."""

    DONE = 0
    FOUND_ERRORS = 1  # of a check; Python's own tracebacks have this code too
    BAD_INPUT = 2
    INTERRUPTED = 3
    NON_FINITE = 4
    SAVE_FAILED = 5  # the run went to its end, but its last state is not on the disk
    PEER_FAILED = 6  # another process failed, or none moved any more (engine.watch.EXIT_CODE)


def run_tool(main: Callable[[], ExitCode]) -> None:
    """Run a command and exit with its code; bad input is reported in one message and without a traceback."""
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        with shown_log():
            code = main()
    except KeyboardInterrupt:
        _report("interrupted")
        sys.exit(128 + signal.SIGINT)  # as shells have it
    except Exception as error:
        code, message = _meaning(error), error
        if code is None:
            raise
    else:
        sys.exit(code)
    if code == ExitCode.PEER_FAILED:
        _report(message)
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun names the process that ends first, which is to be the one that failed
            time.sleep(2 * SECONDS_FOR_THE_FIRST)
        sys.exit(code)
    if not is_first:
        # what is wrong for all processes is reported by the first, upon which torchrun ends the others; a bad image of this
        # process alone has to be reported by it
        time.sleep(SECONDS_FOR_THE_FIRST)
    _report(message)
    sys.exit(code)


def _meaning(error: Exception) -> ExitCode | None:
    """Return the exit code of an error that is no fault of the program."""
    if isinstance(error, InputError):
        return ExitCode.BAD_INPUT
    if isinstance(error, FloatingPointError):
        return ExitCode.NON_FINITE
    from engine import CheckpointError  # torch is loaded by now, which bad input above must not wait for
    from engine.watch import PeerError

    meanings = {CheckpointError: ExitCode.BAD_INPUT, PeerError: ExitCode.PEER_FAILED}
    return next((code for kind, code in meanings.items() if isinstance(error, kind)), None)


def _report(message: object) -> None:
    sys.stderr.write(f"error: {printable(str(message))}\n")
    sys.stderr.flush()


class _PrintableFormatter(logging.Formatter):
    """Names out of files may hold anything; what reaches a terminal does not."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Handler(logging.StreamHandler):
    """Writes lines above the progress bars that there are; of other processes what they alone can know, and errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_first = os.environ.get("RANK", "0") == "0"
        return is_first or record.levelno >= logging.ERROR or getattr(record, "of_rank", False)

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")  # not imported for this
        with tqdm.tqdm.external_write_mode(file=self.stream) if tqdm else nullcontext():
            super().emit(record)


@contextmanager
def shown_log() -> Iterator[None]:
    """Show the log on stderr for as long as this lasts, unless somebody has set up logging; each line once a run."""
    loggers = [logging.getLogger(name) for name in PACKAGES]
    if logging.getLogger().handlers or any(logger.handlers for logger in loggers):
        yield
        return
    handler = _Handler()
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.removeHandler(handler)
            logger.setLevel(level)


@contextmanager
def bad_input(what: str) -> Iterator[None]:
    """Report errors of the engine, which knows nothing of configurations, as bad input of the user."""
    try:
        yield
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"{what}{' '.join(str(error).split())}") from error


def check_installation() -> None:
    """Say in one message what is wrong when torch and torchvision do not load together.

    Raises:
        InputError: they do not.
    """
    try:
        importlib.import_module("torch")
        importlib.import_module("torchvision")
    except Exception as error:  # a torchvision made for another torch fails with ImportError, OSError, RuntimeError, ...
        versions = {name: installed_version(name) for name in ("torch", "torchvision")}
        raise InputError(
            f"torch {versions['torch']} and torchvision {versions['torchvision']} do not load together "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). They have to be a matching pair; "
            "install one with: pip install --upgrade --force-reinstall torch torchvision"
        ) from error
