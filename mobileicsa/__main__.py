"""`python -m mobileicsa`: the command line where the script is not on the path."""

from mobileicsa.cli.main import main

main()
