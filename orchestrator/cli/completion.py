"""Completion for bash, zsh and fish, written from the tables that the parser itself is made of."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evosaga.orchestrator.cli.errors import DONE
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.parser import actions_of
from evosaga.orchestrator.cli.verbs import VERBS

_FILES = ("FILE",)


@dataclass(frozen=True, slots=True)
class Option:
    """One option (or, without a name, argument) of a verb. ``choices`` where only these will do."""

    name: str
    about: str
    takes_value: bool
    value: str = ""
    choices: tuple[str, ...] = ()

    @property
    def is_file(self) -> bool:
        return self.value in _FILES


def completion(arguments: argparse.Namespace, out: Output) -> int:
    """Print the script for one shell."""
    out.line({"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell]().rstrip())
    return DONE


def options_of(verb: str) -> Iterator[Option]:
    """The options of a verb, and its arguments, which have no name here."""
    yield Option("--help", "show an example and what it takes", takes_value=False)
    for action in actions_of(verb):
        choices = tuple(str(choice) for choice in action.choices or ())
        value = str(action.metavar or action.dest).upper()
        about = " ".join((action.help or "").split())
        for name in action.option_strings[-1:]:
            yield Option(name, about, action.nargs != 0, value, choices)
        if not action.option_strings:
            yield Option("", about, True, value, choices)


def _second_words() -> dict[str, list[str]]:
    """Of verbs of two words: the second, by the first."""
    found: dict[str, list[str]] = {}
    for verb in VERBS:
        first, _, second = verb.name.partition(" ")
        if second:
            found.setdefault(first, []).append(second)
    return found


def _first_words() -> list[str]:
    return [verb.name for verb in VERBS if " " not in verb.name]


# --- bash -------------------------------------------------------------------------------------


def bash() -> str:
    """For bash 3.2 and newer."""
    values, words = [], []
    for verb in VERBS:
        offered = list(_second_words().get(verb.name, ()))
        for option in options_of(verb.name):
            if not option.name:
                offered += option.choices
                continue
            offered.append(option.name)
            if option.takes_value:
                values.append(f'        "{verb.name}:{option.name}") {_bash_values(option)} ;;')
        words.append(f'        "{verb.name}") words="{" ".join(offered)}" ;;')
    return _BASH.format(
        verbs=" ".join([*_first_words(), "--help", "--json", "--debug", "--version"]),
        seconds=" ".join(
            f'"{first} {second}"' for first, all_ in _second_words().items() for second in all_
        ).replace('" "', '" | "'),
        values="\n".join(values),
        words="\n".join(words),
    )


def _bash_values(option: Option) -> str:
    if option.is_file:
        return 'COMPREPLY=($(compgen -f -- "$cur")); return'
    if option.choices:
        return f'COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$cur")); return'
    return "return"


_BASH = """\
# bash completion for evosaga
_evosaga() {{
    local cur prev verb words i
    COMPREPLY=()
    cur=${{COMP_WORDS[COMP_CWORD]}}
    prev=${{COMP_WORDS[COMP_CWORD-1]}}
    if [ "$cur" = "=" ]; then cur=""; fi
    if [ "$prev" = "=" ]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}; fi
    verb=""
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
        -*) ;;
        *) verb=${{COMP_WORDS[i]}}; break ;;
        esac
    done
    if ((i + 1 < COMP_CWORD)); then
        case "$verb ${{COMP_WORDS[i+1]}}" in
        {seconds}) verb="$verb ${{COMP_WORDS[i+1]}}" ;;
        esac
    fi
    case "$verb:$prev" in
{values}
    esac
    case "$verb" in
        "") words="{verbs}" ;;
{words}
        *) return ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -F _evosaga evosaga
"""

# --- zsh --------------------------------------------------------------------------------------


def zsh() -> str:
    """For zsh with compinit."""
    verbs = [
        f"    {_single(f'{verb.name}:{verb.sentence}')}" for verb in VERBS if " " not in verb.name
    ]
    cases = []
    for verb in VERBS:
        lines = [_zsh_option(option) for option in options_of(verb.name)]
        if second := _second_words().get(verb.name):
            lines = [line for line in lines if not line.startswith("'*:")]
            lines.append(_single(f"1:ID or {' or '.join(second)}:({' '.join(second)})"))
        joined = " \\\n        ".join(lines)
        cases.append(
            f"    {_single(verb.name)})\n      _arguments -S \\\n        {joined}\n      ;;"
        )
    seconds = "|".join(
        f"'{first} {second}'" for first, all_ in _second_words().items() for second in all_
    )
    return _ZSH.format(verbs="\n".join(verbs), cases="\n".join(cases), seconds=seconds)


def _zsh_option(option: Option) -> str:
    about = option.about
    for character in "\\[]:":
        about = about.replace(character, f"\\{character}")
    values = "_files" if option.is_file else f"({' '.join(option.choices)})"
    if not option.is_file and not option.choices:
        values = " "
    if not option.name:
        return _single(f"*:{option.value}:{values}")
    if not option.takes_value:
        return _single(f"{option.name}[{about}]")
    return _single(f"{option.name}=[{about}]:{option.value}:{values}")


_ZSH = """\
#compdef evosaga
_evosaga() {{
  local -a verbs
  local verb
  integer i
  verbs=(
{verbs}
  )
  for ((i = 2; i < CURRENT; i++)); do
    if [[ $words[i] != -* ]]; then verb=$words[i]; break; fi
  done
  if [[ -z $verb ]]; then
    _describe -t verbs verb verbs
    _arguments '--help[show help]' '--json[write JSON]' '--debug[show tracebacks]' \\
      '--version[show the version]'
    return
  fi
  if ((i + 1 < CURRENT)); then
    case "$verb $words[i+1]" in
      {seconds}) verb="$verb $words[i+1]"; ((i++)) ;;
    esac
  fi
  words=("${{(@)words[i,-1]}}")
  ((CURRENT -= i - 1))
  case $verb in
{cases}
  esac
}}
if [ "$funcstack[1]" = "_evosaga" ]; then
  _evosaga "$@"
else
  compdef _evosaga evosaga
fi
"""

# --- fish -------------------------------------------------------------------------------------


def fish() -> str:
    """For fish 3 and newer."""
    lines = ["# fish completion for evosaga", "complete -c evosaga -f"]
    for verb in VERBS:
        first, _, second = verb.name.partition(" ")
        if second:
            seen = f"__fish_seen_subcommand_from {first}; and __fish_seen_subcommand_from {second}"
            before = f"__fish_seen_subcommand_from {first}; and not {_fish_seen([second])}"
            lines.append(_fish(before, f"-a {second} -d {_fish_single(verb.sentence)}"))
        else:
            seen = f"__fish_seen_subcommand_from {first}"
            if seconds := _second_words().get(first):
                seen += f"; and not {_fish_seen(seconds)}"
            offered = f"-a {first} -d {_fish_single(verb.sentence)}"
            lines.append(_fish("__fish_use_subcommand", offered))
        lines += [_fish(seen, told) for option in options_of(verb.name) if (told := _told(option))]
    return "\n".join(lines) + "\n"


def _fish(condition: str, rest: str) -> str:
    return f"complete -c evosaga -n {_fish_single(condition)} {rest}"


def _fish_seen(words: Sequence[str]) -> str:
    return f"__fish_seen_subcommand_from {' '.join(words)}"


def _told(option: Option) -> str:
    choices = f" -a {_fish_single(' '.join(option.choices))}" if option.choices else ""
    if not option.name:
        return choices.strip()
    told = f"-l {option.name.removeprefix('--')} -d {_fish_single(option.about)}"
    if not option.takes_value:
        return told
    return f"{told} -r -F" if option.is_file else f"{told} -x{choices}"


def _single(text: str) -> str:
    """Text in single quotes, as bash and zsh read them."""
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_single(text: str) -> str:
    """Text in single quotes, as fish reads them."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
