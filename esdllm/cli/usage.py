"""What is said of a command line that was written wrongly: the option or command that would do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from esdllm.cli.foreign import command_here, flag_here

__all__ = ["told_usage"]


_NO_COMMAND = re.compile(r"No such command '(.*)'")


def told_usage(error: Any, words: Sequence[str]) -> str:
    """Return what to say of typer's error about a command line, `words`."""
    context = getattr(error, "ctx", None)
    said = str(error.format_message()).rstrip(".")
    if said.startswith("No such option") and context:
        said = _option(said, error.option_name, context, words)
    elif (found := _NO_COMMAND.fullmatch(said)) and (told := command_here(found[1])):
        said += f"; {told}"
    elif said.startswith("Got unexpected extra argument") and context and context.info_name == "generate":
        said += "; put the prompt in quotes"
    return f"{said} (see {context.command_path} --help)" if context else said


def _option(said: str, option: str, context: Any, words: Sequence[str]) -> str:
    """Return what to say of an unknown option, by the word that it stands in: -ngl is read as -n, and -hf as -h and -f."""
    names = [word.partition("=")[0] for word in words]
    whole = [name for name in names if name.startswith(option)]
    letters = [name for name in names if re.fullmatch(r"-\w+", name) and option[1:] in name[1:]]
    typed = next(iter(whole + letters), option)
    own = [name for param in context.command.params for name in (*param.opts, *param.secondary_opts)]
    same = typed.replace("_", "-").lower()
    told = f"did you mean {same}?" if same in own else flag_here(typed)
    return f"No such option: {typed}; {told}" if told else said
