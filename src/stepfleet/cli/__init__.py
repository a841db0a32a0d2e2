"""The command lines: arguments to settings, wiring and documented exit codes."""
