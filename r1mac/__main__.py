"""``python -m r1mac`` and the ``r1mac`` command."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    import gc

    # Imports make many objects and no garbage: fewer collections save a tenth of a short command, and the decode loop
    # makes little of it.
    gc.set_threshold(50_000)
    from r1mac.cli import main as run

    run()


if __name__ == "__main__":
    main()
