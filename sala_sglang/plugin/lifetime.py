"""No process of a server outlives the one that started it, whatever ended that.

SGLang's schedulers end with their parent; detokenizers and the processes that answer HTTP do not when it is killed.
"""

import multiprocessing
import os
import signal
import threading

from sala_sglang import environment


def have_children_end() -> None:
    """Let every process that this one starts end with it. Workers inherit the environment."""
    os.environ[environment.END_WITH_PARENT] = "1"


def end_with_parent() -> None:
    """End this process when the one that started it has ended, if ``have_children_end`` was called there."""
    parent = multiprocessing.parent_process()
    if parent is None or not environment.is_set(environment.END_WITH_PARENT):
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="ends with its parent", daemon=True).start()
