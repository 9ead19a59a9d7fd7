"""`python -m alula`."""

from alula.cli import main

if __name__ == "__main__":
    main()
