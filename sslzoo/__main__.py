"""Self-supervised learning: pre-train, evaluate, share.

    sslzoo fit | validate | test | predict --config NAME    run a shipped config or your own file
    sslzoo eval RUN|NAME|FILE... [--on CONFIG]              evaluate encoders on labeled data
    sslzoo report RUN...                                    compare runs in one HTML page
    sslzoo zoo list | info | fetch | verify | add | push    find, download and share encoders
    sslzoo export NAME --format FORMAT --to FILE            export an encoder to other formats
    sslzoo --version                                        print the version

Each verb has its own --help; `python -m sslzoo` is the same command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import sslzoo

_TRAINER = ("fit", "validate", "test", "predict")


def main() -> None:
    """Run the verb in `sys.argv`; each verb imports only what it needs."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if "" not in sys.path and os.getcwd() not in sys.path:  # as `python -m` has it, but behind all
        sys.path.append(os.getcwd())
    if verb == "--version":
        print(sslzoo.__version__)
    elif verb in ("", "--help", "-h"):
        print(__doc__, end="")
    elif verb in ("zoo", "export"):
        from sslzoo.commands import zoo

        zoo.main(sys.argv[1:])
    elif verb == "eval":
        from sslzoo.commands import evaluate

        evaluate.main(sys.argv[2:])
    elif verb == "report":
        _report(sys.argv[2:])
    elif verb not in _TRAINER and not verb.startswith("-"):
        verbs = ", ".join((*_TRAINER, "eval", "report", "zoo", "export"))
        raise SystemExit(f"sslzoo: the verb must be one of {verbs}, got {verb!r}")
    else:
        from sslzoo.commands import fit

        fit.run()


def _report(args: Sequence[str]) -> None:
    try:
        from sslzoo.commands import report
    except ImportError as error:
        print(f"sslzoo report: {error}: pip install 'sslzoo[report]'", file=sys.stderr)
        raise SystemExit(1) from None
    report.main(args)


if __name__ == "__main__":
    main()
