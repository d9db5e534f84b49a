"""`python -m sstoken_plugin.experiments CONFIG`."""

from sstoken_plugin.experiments.command import command

if __name__ == "__main__":
    command(prog_name="python -m sstoken_plugin.experiments")
