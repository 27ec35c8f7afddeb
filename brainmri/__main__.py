"""``python -m brainmri``: the command line without an installed script."""

from brainmri.cli import main

main()
