"""The command line. It starts quickly: a verb imports what it needs when it is called."""

import gc
import os
import signal
import sys
from collections.abc import Sequence

from evosaga.orchestrator.cli import front_page, verb_table
from evosaga.orchestrator.cli.errors import BUG, DONE, INTERRUPTED, WRONG, CliError, explained
from evosaga.orchestrator.cli.output import Output, mend_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; its exit code. Trouble that can be expected is one line on stderr."""
    # Imports make no garbage, and looking for some took a tenth of their time. More than a verb
    # imports, so it is still looked for in one that runs for long.
    gc.set_threshold(200_000)
    if os.getpid() == 1:
        # In a container: the kernel withholds a signal for which the first process has no handler.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    open_ = mend_streams()
    out = Output(open_=open_)
    code = _run(argv, out, open_)
    return WRONG if _unwritten(out) and code == DONE else code


def _unwritten(out: Output) -> bool:
    """Whether something that was to be shown could not be."""
    if (error := out.settle()) is None:
        return False
    out.problem(f"stdout can't be written to: {error.strerror}")
    return True


def _run(argv: Sequence[str] | None, out: Output, open_: bool) -> int:
    words = sys.argv[1:] if argv is None else argv
    try:
        match front_page.asked_for(words):
            case "page":
                front_page.show(out)
                return DONE
            case "version":
                out.line(front_page.release())
                return DONE
        if len(words) == 1 and words[0] in verb_table.PROCESSES:
            return int(verb_table.function_of(words[0])(out=out))
        from evosaga.orchestrator.cli.usage import read_words

        call = read_words(words)
        out = Output(json=call.json, debug=call.debug or None, open_=open_)
        return call.make(out)
    except KeyboardInterrupt:
        out.problem("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        return DONE
    except Exception as error:
        return _failed(out, error)


def _failed(out: Output, error: Exception) -> int:
    trouble = error if isinstance(error, CliError) else explained(error)
    if out.debug or trouble is None:
        import traceback

        from evosaga.orchestrator.config.log_config import redaction

        told = "".join(traceback.format_exception(error)).rstrip()
        out.problem(redaction()(None, "", told))  # an exception may quote what it was given
    if trouble is None:
        out.problem("that is a bug in evosaga; please report it with the lines above")
        return BUG
    out.problem(trouble.sentence)
    return trouble.code
