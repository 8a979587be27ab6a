"""An example of a hal plugin; see plugin.py."""
