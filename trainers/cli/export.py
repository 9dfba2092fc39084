"""The command ``research export``: a checkpoint of a run, written as a plain Hugging Face folder.

``research export --ckpt runs/mine/checkpoints/best.ckpt --out mine`` makes a folder that
``AutoModelForCausalLM.from_pretrained("mine")`` loads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from research_rl.envs.system import CommandLine, warn_of_room


def main(argv: Sequence[str]) -> None:
    """Run ``research export`` with these arguments, and say which folder it wrote."""
    parser = CommandLine(
        prog="research export",
        description="Write weights and tokenizer of a checkpoint as a Hugging Face folder.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--ckpt", type=Path, required=True, help="a .ckpt file or folder of `research fit`"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--config",
        type=Path,
        help="the run's config.yaml; found beside the checkpoint's folder if not given",
    )
    args = parser.parse_args(argv)
    from transformers.utils.logging import disable_progress_bar

    from research_rl.trainers.checkpoint import export_checkpoint, find_checkpoint, learned_nothing

    disable_progress_bar()  # type: ignore[no-untyped-call]
    if args.ckpt.is_file():  # of the checkpoint a third is weights, but a part of it is exported
        warn_of_room(args.out.absolute().parent, "the exported policy", args.ckpt.stat().st_size)
    export_checkpoint(args.ckpt, args.out, args.config)
    print(f"wrote {args.out}")
    if learned_nothing(find_checkpoint(str(args.ckpt), args.ckpt.parent)):
        print(
            "note: these weights are bit for bit those that the run began with: nothing was "
            "learned; signal.jsonl in the run's folder says why",
            file=sys.stderr,
        )
