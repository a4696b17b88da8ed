"""TubeViT on one command line: lists the commands, and runs one.

    sparse-tube-vit COMMAND [ARGUMENT ...]

The same as `python -m sparse_tube_vit.COMMAND`.
"""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from sparse_tube_vit import errors

#: Commands by what they are used for.
COMMANDS = {
    "A trained model": ("predict", "features", "probe", "evaluate", "release"),
    "Data": ("prepare", "verify"),
    "Training": ("train", "describe", "preflight", "scale_up", "benchmark"),
    "A run": ("figures", "report"),
    "The paper's tables": ("reproduce",),
}


def main() -> None:
    """Runs the command that the command line names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print("\n".join(overview()))
        return
    if name == "--version":
        import sparse_tube_vit

        print(sparse_tube_vit.__version__)
        return
    command, commands = name.replace("-", "_"), sum(COMMANDS.values(), ())
    if command not in commands:
        nearest = difflib.get_close_matches(command, commands, 1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        sys.exit(
            f"sparse-tube-vit has no command {name!r}.{hint} "
            "`sparse-tube-vit --help` lists them."
        )
    del sys.argv[1]
    sys.excepthook = errors.report_uncaught
    runpy.run_module(f"sparse_tube_vit.{command}", run_name="__main__", alter_sys=True)


def overview():
    """Yields the lines of --help: every command with the first line of its docstring.

    Nothing is imported for it, so that it is there at once.
    """
    folder = Path(__file__).parent
    yield "usage: sparse-tube-vit COMMAND [ARGUMENT ...]\n"
    yield "TubeViT: one vision transformer for images and videos, by sparse tubes."
    for use, commands in COMMANDS.items():
        yield f"\n{use}"
        for command in commands:
            file = folder / f"{command}.py"
            if not file.exists():
                file = folder / command / "__main__.py"
            about = ast.get_docstring(ast.parse(file.read_text())).splitlines()[0]
            yield f"  {command:10}  {about}"
    yield "\n`sparse-tube-vit COMMAND --help` lists its arguments."


if __name__ == "__main__":
    main()
