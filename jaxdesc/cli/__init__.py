"""What every verb shares: a user's mistake becomes one sentence on stderr and exit status 2, never a traceback."""

import argparse
import ctypes
import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from jaxdesc.errors import UserError

# Where keypoints come from; matching.keypoints, which knows, loads JAX.
DETECTOR = "hessian"
KEYPOINTS = "hessian|sift|grid|own|FILE.h5"
KEYPOINTS_TOLD = (
    "hessian, or hessian:1.2,1.7 at these scales in pixels; sift; grid; own, the method's "
    "detector; FILE.h5, keypoints of any detector, as hloc keeps them"
)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def parser(verb: str, description: str, example: str) -> argparse.ArgumentParser:
    as_module = Path(sys.argv[0]).name == f"{verb}.py"  # python -m jaxdesc.train
    return argparse.ArgumentParser(
        prog=f"python -m jaxdesc.{verb}" if as_module else f"jaxdesc {verb}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse_overrides(unknown: list[str]) -> dict[str, str]:
    """["--config.optim.learning_rate=1e-3", ...] -> {"optim.learning_rate": "1e-3"}; a value may follow after a blank too.

    Raises:
      UserError: another argument, or a value is missing.
    """
    overrides, words = {}, iter(unknown)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--config."):
            raise UserError(f"Unknown argument {word!r}: see --help.")
        if not equals:
            value = next(words, None)
            if value is None:
                raise UserError(f"{name} lacks a value.")
        overrides[name.removeprefix("--config.")] = value
    return overrides


def run(main: Callable[[], None]) -> None:
    """Runs a verb and exits: 0 done, 1 the machine refused (disk, memory), 2 a mistake in what was asked, 130 interrupted."""
    # XLA and the checkpoint library log to stderr what no user can act on.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.getLogger("absl").setLevel(logging.ERROR)
    _keep_freed_memory()
    try:
        main()
    except UserError as e:
        sys.exit(_told(str(e), 2))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT):
            sys.exit(_told(f"Cannot write{f' {e.filename}' if e.filename else ''}: {e.strerror}.", 1))
        raise


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless $JAX_COMPILATION_CACHE_DIR says where already."""
    import jax

    from jaxdesc.config import cache_folder

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed: XLA's CPU backend asks for hundreds of megabytes each step, and getting their pages anew took a third of a step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _told(sentence: str, status: int) -> int:
    print(f"jaxdesc: {sentence}", file=sys.stderr)
    return status
