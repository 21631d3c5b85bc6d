"""What a command does first, before the libraries load, which takes seconds.

It imports nothing but the standard library's small modules.
"""

import contextlib
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

NOISE = re.compile(
    rb"before absl::InitializeLog\(\) is called|oneDNN custom operations are on|"
    rb"Could not find cuda drivers|failed call to cuInit"
)
"""What TensorFlow says, whatever its log level, where there is no GPU to find."""


def start() -> None:
    """Loads Keras, quietly; Ctrl-C ends the process until `utils.commands.run_command` has it."""
    stop_on_interrupt()
    load_keras()


def stop_on_interrupt() -> None:
    """Ctrl-C ends the process at once, with status 130, where it would raise KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def raise_on_interrupt() -> None:
    """Undoes `stop_on_interrupt`."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(*_):
    os._exit(130)


def load_keras() -> None:
    """Imports Keras and its backend, without TensorFlow's notes where there is no GPU to find.

    A log level of the user's own, 0 or 1 in TF_CPP_MIN_LOG_LEVEL, lets all of them pass. Where
    there is a GPU, they are errors.
    """
    chosen = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    flags = proc_field("flags").split()
    if "avx2" in flags and "avx512f" not in flags:  # where TensorFlow leaves it off; twice as fast
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    has_gpu = _has_gpu()
    fatal = bool(flags) and "avx" not in flags  # then TensorFlow says so and aborts
    shown = chosen in ("0", "1") or has_gpu or fatal
    with contextlib.nullcontext() if shown else _without_noise():
        import keras

        if keras.config.backend() == "tensorflow":
            import tensorflow

            # it counts each new model's functions as those of the one before, traced anew
            tensorflow.get_logger().addFilter(_is_no_retracing)
            if not has_gpu:
                tensorflow.config.list_physical_devices()  # looks for a GPU, once in a process


def _is_no_retracing(record):
    return "retracing" not in record.getMessage()


def proc_field(field: str, file: str = "cpuinfo") -> str:
    """The first value of a field in a file of Linux's /proc, empty where there is none."""
    try:
        text = Path("/proc", file).read_text()
    except OSError:  # not Linux
        return ""
    found = re.search(rf"^{field}\s*:(.*)", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _has_gpu():
    """Whether the system shows a device of NVIDIA's: natively, on WSL, on a Jetson, on Windows."""
    devices = ("nvidia*", "dxg", "nvhost*", "nvgpu*")
    return os.name == "nt" or any(any(Path("/dev").glob(device)) for device in devices)


@contextlib.contextmanager
def _without_noise():
    """Standard error goes to a file meanwhile, of which all but NOISE is shown afterwards.

    Below Python: the notes are written by C++.
    """
    with contextlib.ExitStack() as stack:
        try:
            shown, kept = os.dup(2), stack.enter_context(tempfile.TemporaryFile())
        except OSError:  # standard error is closed, or there is no place for the file
            yield
            return
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            kept.seek(0)
            for line in kept:
                if not NOISE.search(line):
                    os.write(2, line)
