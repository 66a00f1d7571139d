"""`python -m specdec.grammars.compile_process FD`: the process that the compiler's workers are forked from.

Apart from compile_worker.py, whose types both ends know by the name of their module.
"""

from __future__ import annotations

import sys

from specdec.grammars.compile_worker import main

if __name__ == "__main__":
    main(int(sys.argv[1]))
