"""`python -m prunec`: the command."""

from prunec.compiler.__main__ import main

if __name__ == "__main__":
    main()
