"""The commands of the command line that need no Ray: one module each, with `command(arguments, environment) -> exit code`."""
