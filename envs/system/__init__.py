"""What any long command needs of the operating system: whole files, locks, progress, messages.

Read first: files.py
May import: nothing of ours
"""

from __future__ import annotations

from research_rl.envs.system.commands import (
    FAILED,
    CommandLine,
    did_you_mean,
    parser_of,
    printable,
    printable_json,
)
from research_rl.envs.system.disk import free_at, is_full, told_if_full, warn_of_room
from research_rl.envs.system.doors import lazy
from research_rl.envs.system.files import (
    LineError,
    clear_partial,
    digest_stamp,
    file_mark,
    folder_in_place,
    former_folder,
    is_unwritten,
    lines_of,
    partial_file,
    partial_folder,
    put_back_former,
    remove_former,
    replace_folder,
    sha256_of,
    write_whole,
)
from research_rl.envs.system.letters import UNSPACED, fold_title, folded, marks, scalar_text, typed
from research_rl.envs.system.locks import LOADING, LOCK, alone_in, is_held
from research_rl.envs.system.progress import progress_bar
from research_rl.envs.system.trust import TRUST, TrustError, code_of, grant, not_plain, trusted

__all__ = [
    "FAILED",
    "LOADING",
    "LOCK",
    "TRUST",
    "UNSPACED",
    "CommandLine",
    "LineError",
    "TrustError",
    "alone_in",
    "clear_partial",
    "code_of",
    "did_you_mean",
    "digest_stamp",
    "file_mark",
    "fold_title",
    "folded",
    "folder_in_place",
    "former_folder",
    "free_at",
    "grant",
    "is_full",
    "is_held",
    "is_unwritten",
    "lazy",
    "lines_of",
    "marks",
    "not_plain",
    "parser_of",
    "partial_file",
    "partial_folder",
    "printable",
    "printable_json",
    "progress_bar",
    "put_back_former",
    "remove_former",
    "replace_folder",
    "scalar_text",
    "sha256_of",
    "told_if_full",
    "trusted",
    "typed",
    "warn_of_room",
    "write_whole",
]
