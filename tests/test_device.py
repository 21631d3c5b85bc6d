import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import keras
import pytest

from utils import device

ROOT = Path(__file__).resolve().parents[1]


def test_precision_names(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert device.resolve_precision("float32") == "float32"
    assert device.resolve_precision("mixed_bfloat16") == "mixed_bfloat16"
    with pytest.raises(ValueError, match="'float16' is not one of auto, float32"):
        device.resolve_precision("float16")


@pytest.mark.parametrize(
    "flags, isa, gpu, expected",
    [
        ("fpu avx2 avx512f", None, None, "float32"),
        ("fpu avx2 avx512f avx512_bf16", None, None, "float32"),
        ("fpu avx512_bf16 amx_bf16", None, None, "mixed_bfloat16"),
        ("fpu avx512_bf16 amx_bf16", "DEFAULT", None, "mixed_bfloat16"),
        ("fpu avx512_bf16 amx_bf16", "AVX512_CORE_AMX", None, "mixed_bfloat16"),
        ("fpu avx512_bf16 amx_bf16", "avx512_core_amx", None, "mixed_bfloat16"),
        ("fpu avx512_bf16 amx_bf16", "AVX512_CORE_BF16", None, "float32"),
        ("fpu avx2 avx512f avx512_bf16 amx_bf16", "AVX2", None, "float32"),
        ("fpu avx2", None, ("A100", (8, 0)), "mixed_bfloat16"),
        ("fpu avx512_bf16", None, ("V100", (7, 0)), "float32"),
    ],
)
def test_auto_takes_bfloat16_only_where_it_is_faster(monkeypatch, flags, isa, gpu, expected):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if isa is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    monkeypatch.setattr(device, "proc_field", lambda field: flags)
    monkeypatch.setattr(device, "_gpu", lambda: gpu)
    monkeypatch.setattr(device, "backend", lambda: "tensorflow")
    assert device.resolve_precision("auto") == expected


@pytest.mark.parametrize("isa", ["AVX2", "avx2_vnni", "AVX", "sse41"])
def test_bfloat16_that_onednn_would_abort_on_is_refused(monkeypatch, isa):
    monkeypatch.setattr(device, "_gpu", lambda: None)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    told = f"ONEDNN_MAX_CPU_ISA={isa.upper()} in the environment forbids"
    with pytest.raises(ValueError, match=told):
        device.resolve_precision("mixed_bfloat16")
    assert device.resolve_precision("auto") == "float32"


def test_how_numbers_are_made_is_told_without_package_names(monkeypatch):
    """tensorflow-cpu, tensorflow-rocm and tf-nightly are packages of another name."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    made = device.made_with()
    assert made["backend"] == keras.backend.backend() and made["device"]
    backend = sys.modules[made["backend"]]
    assert made["versions"][made["backend"]] == backend.__version__
    assert {"python", "keras", "numpy", "scipy", "scikit-learn"} < made["versions"].keys()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_told_where_there_is_one(monkeypatch, tmp_path):
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # of a hook that runs the tests
        monkeypatch.delenv(name, raising=False)

    def git(*arguments):
        who = ["-c", "user.name=x", "-c", "user.email=x", "-c", "commit.gpgsign=false"]
        command = ["git", *who, *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(device, "__file__", str(tmp_path / "device.py"))
    assert device.commit() == ""
    git("init")
    (tmp_path / "device.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    head = device.commit()
    assert len(head) == 40
    (tmp_path / "device.py").write_text("2")
    assert device.commit() == head + "+"
    inner = tmp_path / "unpacked" / "utils" / "device.py"  # without a history, in another project
    inner.parent.mkdir(parents=True)
    monkeypatch.setattr(device, "__file__", str(inner))
    assert device.commit() == ""
    monkeypatch.setattr(device, "__file__", str(tmp_path / "device.py"))
    monkeypatch.setenv("PATH", "")
    assert device.commit() == ""


ELSEWHERE = """
import os, sys

class Missing:  # what Windows has not, and macOS in part
    def find_spec(self, name, path=None, target=None):
        if name in ("resource", "fcntl"):
            raise ModuleNotFoundError(name)

for name in ("resource", "fcntl"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
for name in ("sched_getaffinity", "sched_setaffinity"):
    delattr(os, name)
import detect, experiments, intuition_experiments, multiclass_experiment
from utils import device
device.peak_memory(), device.made_with()
assert device.processor_cores() == list(range(os.cpu_count()))
sys.exit(experiments.main(sys.argv[1:]))
"""


def test_commands_run_on_systems_that_lack_linuxs_modules(tmp_path):
    command = ["--methods", "raw_ocsvm", "--classes", "4", "--limit-train", "40", "--limit-test"]
    shown = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *command, "60", "--results-dir", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "digits" / "digits_raw_ocsvm_4_0.npz").exists()
