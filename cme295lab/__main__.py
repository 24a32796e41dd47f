"""`python -m cme295lab` is the command `cme295lab`."""

from cme295lab.cli import main

if __name__ == "__main__":
    main()
