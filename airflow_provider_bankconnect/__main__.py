"""`python -m airflow_provider_bankconnect`: says which commands there are, and runs one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS: Final = {
    "explain": "ask BankConnect now, and say what a sensor would do, and why",
    "sandbox": "run a mock BankConnect on this machine, for development and tests",
    "examples": "list the example DAGs, or print the path of one to copy",
    "constraints": "print the path of the tested versions for your Airflow, for pip install -c",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; without one, say which there are."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # Each imports what it needs: Airflow and BankConnect's models take seconds.
    if command == "explain":
        from airflow_provider_bankconnect.explain_command import main as run  # noqa: PLC0415
    elif command == "sandbox":
        from airflow_provider_bankconnect.sandbox.__main__ import main as run  # noqa: PLC0415
    elif command == "examples":
        from airflow_provider_bankconnect.copies import examples as run  # noqa: PLC0415
    elif command == "constraints":
        from airflow_provider_bankconnect.copies import constraints as run  # noqa: PLC0415
    elif command in {"-h", "--help", "help"}:
        sys.stdout.write(_help())
        return 0
    else:
        known = ", ".join(_COMMANDS)
        sys.stderr.write(f"{command!r} is no command of airflow_provider_bankconnect. Its commands are: {known}\n")
        return 2
    return run(rest)


def _help() -> str:
    width = max(map(len, _COMMANDS)) + 2
    lines = (f"  {name:<{width}}{what}" for name, what in _COMMANDS.items())
    return "\n".join(
        (
            "usage: python -m airflow_provider_bankconnect COMMAND ...",
            "",
            "FinBox BankConnect for Apache Airflow. The commands are:",
            "",
            *lines,
            "",
            "COMMAND --help says more about one.",
            "",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
