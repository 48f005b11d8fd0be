"""The kind of machine that computes. Besides network and rows it decides the last digits of an embedding."""

import os
import platform
from pathlib import Path

import tensorflow as tf

CPUINFO = Path("/proc/cpuinfo")  # of Linux
VECTOR_UNITS = ("avx", "fma", "amx", "asimd", "sve")
ONEDNN = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA")  # environment variables: whether, and with which units


def gpu_names() -> str:
    """Of the GPUs that TensorFlow sees; empty without one."""
    gpus = tf.config.list_physical_devices("GPU")
    return ", ".join(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus)


def device_name() -> str:
    """What TensorFlow computes on, as one says it."""
    return gpu_names() or f"CPU ({os.cpu_count()} cores)"


def machine_kind() -> str:
    """What decides the last digits: the GPUs, or else a CPU's vector units and the settings of oneDNN, which TensorFlow
    computes with there; and TensorFlow's version. Of a CPU that the system does not describe, the architecture
    alone."""
    settings = [f"{name}={os.environ[name]}" for name in ONEDNN if name in os.environ]
    return ", ".join([gpu_names() or _cpu(), *settings, f"TensorFlow {tf.version.VERSION}"])


def _cpu() -> str:
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    return " ".join([platform.machine(), *sorted(flag for flag in flags if flag.startswith(VECTOR_UNITS))])
