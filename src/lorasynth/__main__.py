"""`python -m lorasynth` is the command `lorasynth`."""

from lorasynth.commands.main import main

main()
