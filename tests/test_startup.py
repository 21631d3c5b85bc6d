import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils import startup

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_ctrl_c_while_a_command_loads_is_status_130(tmp_path):
    """The first library that detect.py loads is replaced by one that interrupts it."""
    (tmp_path / "numpy.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n1\n"
    )
    stopped = subprocess.run(
        [sys.executable, ROOT / "detect.py", "--help"],
        env=ENVIRONMENT | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (130, "", "")


def test_an_ignored_ctrl_c_stays_ignored_and_ours_is_taken_back():
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a command that runs under nohup
        startup.stop_on_interrupt()
        startup.raise_on_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
        startup.stop_on_interrupt()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        startup.raise_on_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_importing_it_loads_and_changes_nothing():
    code = (
        "import os, signal, sys; before = dict(os.environ), signal.getsignal(signal.SIGINT)\n"
        "import utils.startup, utils.commands\n"
        "assert before == (dict(os.environ), signal.getsignal(signal.SIGINT))\n"
        "assert not {'numpy', 'keras', 'PIL'} & set(sys.modules)\n"
    )
    assert run(code).stderr == ""


@pytest.mark.skipif(startup._has_gpu(), reason="with a GPU, TensorFlow's notes matter")
def test_tensorflow_keeps_quiet_where_there_is_no_gpu():
    """Up to and past its first computation; what others write to stderr is let through."""
    code = (
        "import os, sys; from utils import startup\n"
        "os.write(2, b'before\\n')\n"
        "startup.start()\n"
        "import keras\n"
        "keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).compile(jit_compile=True)\n"
        "os.write(2, b'after\\n')"
    )
    assert run(code, PYTHONWARNINGS="ignore").stderr == "before\nafter\n"


def test_only_known_notes_are_kept_back():
    code = (
        "import os, sys; from utils.startup import _without_noise\n"
        "with _without_noise():\n"
        "    os.write(2, b'I0000 port.cc:153] oneDNN custom operations are on. You may\\n')\n"
        "    os.write(2, b'E0000 cuda_platform.cc:52] failed call to cuInit: INTERNAL\\n')\n"
        "    os.write(2, b'E0000 something is wrong\\n')\n"
        "    print('a warning', file=sys.stderr)\n"
        "    raise SystemExit('stopped')"
    )
    found = run(code)
    assert found.stderr == "E0000 something is wrong\na warning\nstopped\n"
    assert found.returncode == 1


def test_a_closed_standard_error_does_not_matter():
    code = "import os; from utils import startup; os.close(2); startup.load_keras(); print('on')"
    assert run(code).stdout == "on\n"
