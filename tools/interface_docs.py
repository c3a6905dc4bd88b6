"""Writes what is derived from dust3r_ros/config.py: the parameter table of docs/interface.md and config/default.yaml.

Run it after changing an option: `python tools/interface_docs.py`. With `--check` it only says what is out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dust3r_ros.config import NodeConfig
from dust3r_ros.options import Option, Value, options_of

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- parameters: written by tools/interface_docs.py -->"
END = "<!-- end of parameters -->"


def parameter_table() -> str:
    """The parameters as a Markdown table."""
    lines = ["| parameter | type | default | range | live | description |", "|---|---|---|---|---|---|"]
    for option in options_of(NodeConfig).values():
        live = "yes" if option.live else ""
        cells = (f"`{option.name}`", option.type.__name__, f"`{text_of(option.default)}`", allowed(option), live)
        lines.append(f"| {' | '.join(cells)} | {option.description} |")
    return "\n".join(lines)


def default_yaml() -> str:
    """A parameter file with every parameter at its default."""
    lines = [
        "# Every parameter at its default. Written by tools/interface_docs.py from dust3r_ros/config.py.",
        "/**:",
        "  ros__parameters:",
    ]
    open_groups: list[str] = []
    for option in options_of(NodeConfig).values():
        *groups, leaf = option.name.split(".")
        if groups != open_groups:
            lines += [f"{'  ' * (depth + 2)}{name}:" for depth, name in enumerate(groups)]
            open_groups = groups
        indent = "  " * (len(groups) + 2)
        about = f"{option.description}; {allowed(option)}" if allowed(option) else option.description
        lines += [f"{indent}# {about}", f"{indent}{leaf}: {text_of(option.default)}"]
    return "\n".join(lines) + "\n"


def allowed(option: Option) -> str:
    """Choices or range in words."""
    return "one of " + ", ".join(option.choices) if option.choices else option.range_text()


def text_of(value: Value) -> str:
    """A value as YAML has it."""
    return json.dumps(value)


def with_table(page: str) -> str:
    """The page with its parameter table replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or END not in rest:
        raise SystemExit(f"docs/interface.md needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{parameter_table()}\n{END}{after}"


def main() -> int:
    """Write both files, or with --check only compare: 1 when one is out of date."""
    page = ROOT / "docs" / "interface.md"
    wanted = {page: with_table(page.read_text("utf-8")), ROOT / "config" / "default.yaml": default_yaml()}
    old = [path for path, text in wanted.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in old:
        sys.stdout.write(f"{path.relative_to(ROOT)} {'is out of date' if '--check' in sys.argv else 'written'}\n")
        if "--check" not in sys.argv:
            path.write_text(wanted[path], "utf-8")
    return 1 if old and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
