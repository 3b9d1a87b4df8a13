"""Time and memory of compiled functions, and the rows in which they are printed."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

GIGA = 1e9


def seconds(function: Callable, *arguments, repeat: int, warm: bool = True) -> float:
    """Median wall time of a compiled function, after one call that warms up unless `warm` is False."""
    import jax

    if warm:
        jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return sorted(times)[repeat // 2]


def cpu_seconds(function: Callable[[], object], repeat: int) -> float:
    """Median CPU time of all threads, after one call that warms up."""
    function()
    times = []
    for _ in range(repeat):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return sorted(times)[repeat // 2]


def compiled(function: Callable, *arguments):
    """(compiled function, peak bytes of its temporaries and results)."""
    import jax

    program = jax.jit(function).lower(*arguments).compile()
    memory = program.memory_analysis()
    return program, memory.temp_size_in_bytes + memory.output_size_in_bytes


def row(name: str, time_s: float, floor_s: float | None, floor: str = "", memory: int | None = None) -> None:
    ratio = f"{floor_s:8.3f} s  {time_s / floor_s:6.2f} x  {floor}" if floor_s else ""
    print(f"{name:44s} {time_s:8.3f} s  {f'{memory / 2**20:7.0f} MiB' if memory is not None else '':>11s}  {ratio}", flush=True)


def heading() -> None:
    import jax

    device = jax.devices()[0]
    print(f"{device.device_kind} x {jax.local_device_count()}, jax {jax.__version__}")
    print(f"{'':44s} {'time':>10s}  {'memory':>11s}  {'floor':>10s}  {'ratio':>8s}")


def resident_bytes(peak: bool = False) -> int:
    """Of this process: now, after all that is free was given back, or at most since that was asked (Linux with glibc; elsewhere 0)."""
    try:
        if not peak:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:" if peak else "VmRSS:"))
    except (OSError, AttributeError):
        return 0
