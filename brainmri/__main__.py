"""``python -m brainmri``: the command line without an installed script."""

from brainmri.cli import main

if __name__ == "__main__":  # worker processes import this module again
    main()
