"""`python -m lorasynth` is the command `lorasynth`."""

from lorasynth.cli.main import main

main()
