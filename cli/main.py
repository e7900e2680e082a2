"""`slm`: the command line. Commands load when they are called, so `--help` needs no torch.

Invariant: bad input is one line and exit 2, failed work one line and exit 1; a traceback only with SLM_DEBUG=1.
"""

from __future__ import annotations

import os
import sys

import click

from slm_fn.cli.lazy import LazyGroup

COMMANDS = {
    "demo": ("demo", "The whole road on the embedded corpus, then how to chat."),
    "device": ("device", "Devices, precisions, memory and threads of this machine."),
    "doctor": ("doctor", "Whether training here is right: the device against the CPU."),
    "plan": ("plan", "What a config costs before it is run, and where it fits."),
    "config": ("config", "Show a config, and where each value came from."),
    "data": ("data", "Prepare and pack text, inspect packs and chat data."),
    "tokenizer": ("tokenizer", "Train, inspect and use a tokenizer."),
    "pretrain": ("pretrain", "Train a model from packed text."),
    "sft": ("sft", "Fine-tune on conversations."),
    "dpo": ("dpo", "Train on preferred and rejected replies."),
    "eval": ("evaluate", "Judge a model: perplexity and bits per byte."),
    "sample": ("sample", "Continue a text."),
    "chat": ("chat", "Talk to a model in the terminal."),
    "serve": ("serve", "Serve a model and its chat page."),
    "keys": ("keys", "API keys of the server: add, list, remove."),
    "quantize": ("quantize", "A model with its matrices in 8 or 4 bits."),
    "bench": ("bench", "Measure speed on this machine."),
    "runs": ("runs", "A table of training runs."),
}
BAD_INPUT = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="slm_fn")
def cli() -> None:
    """A small language model from raw text to a chat in the browser.

    \b
    Example:
        slm demo
        slm serve demo/dpo
    """


def main() -> None:
    """Entry point: run, and turn errors into one line and an exit status."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _fail("stopped", 1)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _fail("stopped", 1)
    except BAD_INPUT as error:
        _fail(_line(error), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more to say
        sys.exit(0)
    except Exception as error:
        _fail(_line(error), 1)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    known = isinstance(error, ValueError | OSError | FloatingPointError)
    known = known or type(error).__name__ in ("Interrupted", "OutOfMemory")
    return text if known and text else f"{type(error).__name__}: {text}"


def _fail(line: str, code: int) -> None:
    if os.environ.get("SLM_DEBUG") and sys.exc_info()[0] is not None:
        raise
    rank = int(os.environ.get("RANK", "0"))
    # Of several processes that torchrun started the first speaks for all, unless it is about one of them.
    if not (rank and type(sys.exc_info()[1]).__name__ == "Interrupted"):
        click.echo(f"slm: {f'process {rank}: ' if rank else ''}{line}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
