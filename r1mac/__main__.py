"""``python -m r1mac`` and the ``r1mac`` command."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    from r1mac.cli import main as run

    run()


if __name__ == "__main__":
    main()
