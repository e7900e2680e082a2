"""`slm`: the entry point. Commands are imported when they are called, so `--help` needs no torch.

Invariant: bad input is one line and exit status 2, failed work one line and exit status 1; a
traceback is printed only with SLM_DEBUG=1.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from slm_fn.cli.lazy import LazyGroup

COMMANDS = {
    "demo": ("training.demo", "Run every stage on the embedded corpus, then chat."),
    "device": ("system.device", "Devices, precisions, memory and threads of this machine."),
    "doctor": ("system.doctor", "Check that training on a device computes what the CPU does."),
    "plan": ("system.plan", "Estimate what training by a config costs, and where it fits."),
    "config": ("system.config", "Show a config, and the origin of each value."),
    "data": ("data.group", "Prepare and pack text, inspect packs and chat data."),
    "tokenizer": ("tokenizer.group", "Train, inspect, use and export a tokenizer."),
    "pretrain": ("training.pretrain", "Train a model from packed text."),
    "sft": ("training.sft", "Fine-tune on conversations."),
    "dpo": ("training.dpo", "Train on preferred and rejected replies."),
    "eval": ("models.evaluate", "Evaluate a model: perplexity and bits per byte."),
    "sample": ("models.sample", "Continue a text."),
    "chat": ("models.chat", "Chat with a model in the terminal."),
    "serve": ("models.serve", "Serve a model and its chat page."),
    "keys": ("models.keys", "API keys of the server: add, list, remove."),
    "quantize": ("models.quantize", "Quantize a model's matrices to 8 or 4 bits."),
    "bench": ("bench.group", "Measure speed on this machine."),
    "runs": ("runs.group", "List and plot training runs."),
}
BAD_INPUT = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
INTERRUPTED = "Interrupted"
SELF_EXPLANATORY = (INTERRUPTED, "OutOfMemory")
"""Names of exceptions whose messages need no type name before them; their modules import torch."""


@click.group(
    cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="slm_fn")
def cli() -> None:
    """A small language model from raw text to a chat in the browser.

    \b
    Example:
        slm demo
        slm serve demo/dpo
    """


def main() -> None:
    """Run a command and exit; an exception becomes one line and an exit status."""
    try:
        status = cli.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail("stopped", 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BAD_INPUT as error:
        _fail(_describe(error), 2)
    except BrokenPipeError:
        _discard_stdout()
        sys.exit(0)
    except Exception as error:
        _fail(_describe(error), 1)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _describe(error: Exception) -> str:
    """Returns one line about an error, with its type where the message alone is not enough."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    name = type(error).__name__
    is_builtin = isinstance(error, ValueError | OSError | FloatingPointError)
    if text and (is_builtin or name in SELF_EXPLANATORY):
        return text
    return f"{name}: {text}"


def _fail(message: str, status: int) -> NoReturn:
    """Print a message on standard error and exit; with SLM_DEBUG raise the current exception."""
    error = sys.exc_info()[1]
    if os.environ.get("SLM_DEBUG") and error is not None:
        raise error
    rank = int(os.environ.get("RANK", "0"))
    # In a distributed run every process is interrupted: only the first one reports it.
    is_duplicate = rank > 0 and type(error).__name__ == INTERRUPTED
    if not is_duplicate:
        prefix = f"process {rank}: " if rank else ""
        click.echo(f"slm: {prefix}{message}", err=True)
    sys.exit(status)


def _discard_stdout() -> None:
    """Redirect standard output to null: its reader is closed, and flushing at exit would fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())


if __name__ == "__main__":
    main()
