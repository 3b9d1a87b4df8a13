"""What a run tells: a progress bar, JSON lines and TensorBoard, all from the same numbers."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm


def forget_after(path: Path, step: int) -> None:
    """Drops the lines of a metrics file that a restored run will write again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # the last line of a killed run may be torn
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)


class Reporter:
    """Writes `metrics.jsonl` and TensorBoard events into a folder and a bar with loss, images/s and time left to stderr."""

    def __init__(self, workdir: Path, start: int, steps: int, images_per_step: int, enabled: bool = True):
        self.enabled = enabled
        self.images_per_step = images_per_step
        if not enabled:
            return
        self.path = workdir / "metrics.jsonl"
        forget_after(self.path, start)
        self.file = self.path.open("a")
        (workdir / "tensorboard").mkdir(exist_ok=True)
        # written in this thread: tensorboardX's own writer thread dies on a full disk and the run would wait for it for ever
        self.board = EventsWriter(str(workdir / "tensorboard" / "events"))
        if start:
            self._event(start + 1, session_log=SessionLog(status=SessionLog.START))
        self.bar = tqdm(total=steps, initial=start, unit="step", file=sys.stderr, dynamic_ncols=True, mininterval=0.5)
        self.clock = (time.perf_counter(), start)

    def _event(self, step: int, **content) -> None:
        self.board.write_event(Event(wall_time=time.time(), step=step, **content))

    def step(self, step: int, loss: float) -> None:
        if self.enabled:
            self.bar.update(step - self.bar.n)
            rate = self.bar.format_dict["rate"]
            images = f"{rate * self.images_per_step:.1f}" if rate else "?"
            self.bar.set_postfix_str(f"loss {loss:.4f}, {images} images/s", refresh=False)

    def metrics(self, step: int, values: dict[str, float], prefix: str = "train") -> None:
        if not self.enabled:
            return
        now = time.perf_counter()
        if prefix == "train" and step > self.clock[1]:
            values = {**values, "images_per_s": self.images_per_step * (step - self.clock[1]) / (now - self.clock[0])}
            self.clock = (now, step)
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        self.file.write(json.dumps({"step": step, "split": prefix, **rounded}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self._event(step, summary=summary.scalar(f"{prefix}/{name}", value))
        self.board.flush()

    def pause_clock(self) -> None:
        """Time spent on validation and checkpoints does not count as training time."""
        if self.enabled:
            self.clock = (time.perf_counter(), self.bar.n)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        if self.enabled:
            self._event(step, summary=summary.image(name, picture, dataformats="HWC"))
            self.board.flush()

    def say(self, text: str) -> None:
        if self.enabled:
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self.enabled:
            self.bar.close()
            self.board.close()
            self.file.close()
