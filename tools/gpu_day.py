"""Half an hour or a day on one GPU: benchmarks, then training that ends when the time does.

    python tools/gpu_day.py --photos DIR --pairs DIR --out DIR --minutes 30
    python tools/gpu_day.py --config configs/pump.py:smoke --out /tmp/day --minutes 4  # a rehearsal

OUT gets benchmarks.txt, train.log, the workdir `run` and, every 8 minutes, the newest
checkpoint as a weight file. The number of steps is not chosen beforehand: training is stopped
when 70 % of its time is over and resumed with as many steps as the measured speed allows, so
that the learning rate has fallen to 0 at the end (the schedule must be a trapezoid). Started
again with the same OUT, it goes on with a new time limit.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

BENCHMARKS = (
    ("step", "--config", "{config}"),
    ("losses", "--size", "256", "--batch", "2"),
    ("match", "--sizes", "640x480", "1024x768"),
)
FIRST = 0.7  # fraction of the training time before the number of steps is chosen
PACK_EVERY_S = 480
OPEN_END = 10_000_000  # steps of a run whose length is not known yet
SPARE = 0.93  # fraction of the remaining time that steps are planned for


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, required=True, help="of everything together")
    parser.add_argument("--config", default="configs/pump.py:shipped", metavar="FILE.py[:VARIANT]")
    parser.add_argument("--photos", metavar="DIR", help="photographs (default: embedded ones)")
    parser.add_argument("--pairs", metavar="DIR", help="unlabelled pairs (default: embedded ones)")
    parser.add_argument("--no-benchmarks", action="store_true", help="train at once")
    return parser


def verb(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"jaxdesc.{name}", *arguments]


def benchmarks(config: str, data: list[str], out: Path) -> None:
    """Each benchmark's table, or why there is none, appended to a file."""
    with open(out, "a") as file:
        for name, *more in BENCHMARKS:
            more = [text.format(config=config) for text in more]
            command = verb("benchmark", name, *more, *(data if name == "step" else []))
            done = subprocess.run(command, capture_output=True, text=True)
            text = done.stdout if done.returncode == 0 else done.stderr[-2000:]
            print(f"benchmark {name}\n{text}", flush=True)
            file.write(f"$ {' '.join(command[1:])}\n{text}\n")


def train(command: list[str], log: Path, limit_s: float, pack) -> int:
    """Runs until it ends or its time is over, then asks it to save; the exit status."""
    end, next_pack = time.monotonic() + limit_s, time.monotonic() + PACK_EVERY_S
    with open(log, "a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(1)
            if time.monotonic() > next_pack:
                next_pack += PACK_EVERY_S
                pack()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        return process.wait()


def rows(run: Path) -> list[dict]:
    """Those of the training metrics."""
    file = run / "metrics.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row for row in found if row["split"] == "train"]


def planned_steps(done: int, images_per_s: float, images_per_step: int, left_s: float) -> int:
    """Steps of the whole run, so that those that are left take `left_s`."""
    steps = done + int(SPARE * max(left_s, 0) * images_per_s / images_per_step)
    return max(steps, -(-5 * done // 4))  # the last fifth must not have begun


def images_per_step(config: dict) -> int:
    """From what a run's config.json holds: two for each pair of each kind."""
    return 2 * sum(kind["per_batch"] for kind in config["data"].values() if isinstance(kind, dict))


def main() -> None:
    args = flags().parse_args()
    begun, run, log = time.monotonic(), args.out / "run", args.out / "train.log"
    args.out.mkdir(parents=True, exist_ok=True)
    sources = {"homography": ("photos", args.photos), "unlabelled": ("pairs", args.pairs)}
    data = [
        f"--config.data.{kind}.sources={source}:{path}"
        for kind, (source, path) in sources.items()
        if path
    ]
    if not args.no_benchmarks:
        benchmarks(args.config, data, args.out / "benchmarks.txt")

    def pack() -> None:
        """The checkpoint as a weight file; a run without one yet, or a disk that is full, says so."""
        taken = rows(run)
        file = args.out / f"pump-{taken[-1]['step'] if taken else 0}.safetensors"
        subprocess.run(verb("convert", str(run), str(file), "--overwrite"))

    def stage(steps: int, limit_s: float) -> int:
        more = ("--workdir", str(run), f"--config.train.steps={steps}", "--config.optim.schedule=trapezoid")
        return train(verb("train", "--config", args.config, *more, *data), log, limit_s, pack)

    left_s = 60 * args.minutes - (time.monotonic() - begun)
    before = time.monotonic()
    if stage(OPEN_END, FIRST * left_s) or not rows(run):
        sys.exit(f"Training did not get to its first line of metrics: see {log}.")
    taken = rows(run)
    speed = statistics.median(row["images_per_s"] for row in taken[len(taken) // 2 :])
    per_step = images_per_step(json.loads((run / "config.json").read_text()))
    started_s = max(time.monotonic() - before - taken[-1]["step"] * per_step / speed, 0)  # to compile
    done = max(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))
    left_s = 60 * args.minutes - (time.monotonic() - begun) - started_s
    steps = planned_steps(done, speed, per_step, left_s)
    print(f"{done} steps at {speed:.0f} images/s; it goes on to {steps}", flush=True)
    status = stage(steps, float("inf"))
    pack()
    sys.exit(status)


if __name__ == "__main__":
    main()
