"""The device that computes: its precision, its memory, and what a run's file says of both."""

import importlib
import os
import platform
import subprocess
from pathlib import Path

from utils.backend import backend
from utils.startup import proc_field

PRECISIONS = ("auto", "float32", "mixed_bfloat16")


class PrecisionError(ValueError):
    """A precision that is none, or that this machine is not to compute in."""


def resolve_precision(precision: str) -> str:
    """The dtype policy for `precision`: "auto" takes bfloat16 only where that is faster.

    On NVIDIA GPUs since Ampere, "float32" leaves the libraries' TF32 as it is.

    Raises PrecisionError for a name not in PRECISIONS, and for bfloat16 where the environment rules
    out the instructions that it takes.
    """
    if precision not in PRECISIONS:
        raise PrecisionError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        return "mixed_bfloat16" if _computes_bfloat16() else "float32"
    isa = _max_isa()
    too_old = isa == "AVX" or isa.startswith(("SSE", "AVX2"))
    if precision == "mixed_bfloat16" and too_old and _gpu() is None:
        raise PrecisionError(  # oneDNN would abort the process
            f"precision 'mixed_bfloat16' needs AVX-512, which ONEDNN_MAX_CPU_ISA={isa} in the "
            "environment forbids: unset it, or choose float32"
        )
    return precision


def _computes_bfloat16() -> bool:
    """Whether the device computes bfloat16 faster than float32, and its library may do so.

    Of processors those with AMX: by avx512_bf16 alone Intel's were 0.6 times as fast, and AMD's,
    1.7 times as fast, made Deep SVDD's weights not finite (RESULTS.md).
    """
    if (gpu := _gpu()) is not None:
        return gpu[1] >= (8, 0)
    if backend() == "jax":  # XLA has no kernels of it for a CPU; oneDNN, of the others, has
        return False
    allowed = _max_isa() in ("DEFAULT", "ALL") or "AMX" in _max_isa()
    return allowed and "amx_bf16" in proc_field("flags").split()


def _max_isa() -> str:
    """The instructions that oneDNN may use: the environment names them in either case."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()


def _gpu() -> tuple[str, tuple[int, ...]] | None:
    """The name and compute capability of the backend's first NVIDIA GPU, None without one."""
    if backend() == "tensorflow":
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(gpu)
            return details.get("device_name", "GPU"), details.get("compute_capability", (0, 0))
    elif backend() == "jax":
        import jax

        device = jax.devices()[0]
        capability = str(getattr(device, "compute_capability", ""))
        if device.platform == "gpu" and capability[:1].isdigit():  # AMD's are called gfx...
            return device.device_kind, tuple(map(int, capability.split(".")))
    else:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
    return None


def use_xla() -> bool:
    """Whether to compile steps with XLA: always under JAX; under TensorFlow on a GPU alone.

    On a CPU, XLA's convolutions are slower than the oneDNN kernels that TensorFlow calls otherwise.
    """
    return backend() == "jax" or (backend() == "tensorflow" and _gpu() is not None)


def scoring_batch() -> int:
    """Forward passes a batch while scoring: 576 on a GPU, 144 on a CPU, which is faster there."""
    return 144 if _gpu() is None else 576


def device_name() -> str:
    """The device that trains: a GPU's name, or the processor's, its cores and vector units."""
    if (gpu := _gpu()) is not None:
        return gpu[0]
    name = proc_field("model name") or platform.processor() or platform.machine()
    native = {"amx_bf16", "avx512_bf16", "avx512f", "avx2"} & set(proc_field("flags").split())
    units = f", {' '.join(sorted(native))}" if native else ""
    return f"{name}, {len(processor_cores())} cores{units}"


def processor_cores() -> list[int]:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def made_with() -> dict:
    """What numbers depend on beside the settings, as plain values for a run's file.

    "backend", "device", "versions" and "commit", that of this project, which git is asked for.
    """
    how = {"backend": backend(), "device": device_name()}
    return how | {"versions": versions(), "commit": commit()}


def versions() -> dict[str, str]:
    """Of Python and the libraries, as they call themselves, whatever package they came in."""
    libraries = ("keras", backend(), "numpy", "scipy", "sklearn")
    found = {name: importlib.import_module(name).__version__ for name in libraries}
    found["scikit-learn"] = found.pop("sklearn")
    return {"python": platform.python_version()} | found


def commit() -> str:
    """The commit of this project that runs, with `+` where files differ from it; "" without git."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    git += ["--abbrev=40", "--exclude=*"]  # the whole hash, and no tag's name
    try:
        ceiling = {"GIT_CEILING_DIRECTORIES": str(Path(__file__).parents[2])}  # not one around it
        how = {"capture_output": True, "text": True, "check": True, "env": os.environ | ceiling}
        return subprocess.run(git, **how).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or files without their history
        return ""


def reset_peak_memory() -> bool:
    """Lets `peak_memory` begin anew; False where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or a container that forbids it
        return False
    return True


def peak_memory() -> int | None:
    """The largest resident set since `reset_peak_memory`, in bytes; None where Linux is not."""
    kilobytes = proc_field("VmHWM", "self/status").removesuffix(" kB")
    return 1024 * int(kilobytes) if kilobytes else None
