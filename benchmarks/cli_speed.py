"""How long help and usage errors take, and what an import costs: CPU seconds of whole processes.

python benchmarks/cli_speed.py            # prints a table
python benchmarks/cli_speed.py --times 5  # the least of five runs
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

COMMAND = ("-m", "research_rl.trainers.cli")
CASES: dict[str, tuple[str, ...]] = {
    "import research_rl": ("-c", "import research_rl; research_rl.__version__"),
    "import research_rl.envs": ("-c", "import research_rl.envs"),
    "import research_rl.agents": ("-c", "import research_rl.agents"),
    **{
        f"research {words}": (*COMMAND, *words.split())
        for words in (
            "--help",
            *(f"{name} --help" for name in ("fit", "validate", "test", "predict", "sft")),
            *("collect --help", "evaluate --help", "fit --help all", "fit --help model.env"),
            *("fit --config quikstart", "fit --config quickstart --data.batch_siz 8"),
            *("fit --config quickstart --data.batch_size", "fit --config quickstart --data.seed x"),
            *(
                "evaluate --config evaluate/quickstart --limt 3",
                "sft --config small_cpu --data.x 1",
            ),
        )
    },
}


def measured(words: tuple[str, ...], times: int) -> tuple[float, float]:
    """Return the least CPU seconds and the least seconds of a Python process."""
    cpu, wall = [], []
    for _ in range(times):
        began, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, *words], capture_output=True)
        after = os.times()
        wall.append(time.perf_counter() - began)
        cpu.append(sum(after[2:4]) - sum(before[2:4]))
    return min(cpu), min(wall)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=2)
    times = parser.parse_args().times
    print("| what | CPU s | s |\n|---|---|---|")
    for name, words in CASES.items():
        cpu, wall = measured(words, times)
        print(f"| `{name}` | {cpu:.2f} | {wall:.2f} |", flush=True)


if __name__ == "__main__":
    main()
