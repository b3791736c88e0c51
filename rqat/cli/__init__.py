"""The `rqat` command: `app` puts it together, every other file is one command; `display` draws."""
