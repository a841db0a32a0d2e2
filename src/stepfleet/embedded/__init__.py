"""Redis without an installation: in this process, or a real server of the project folder."""
