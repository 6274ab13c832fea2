"""`python -m app copy`: copies the history of one database into another.

`source.py` is what a database offers to be read, and a file each reads one kind of database;
`converted.py` reads Home Assistant's schema as `homeiq`; `writer.py` writes, `progress.py`
remembers what is written, `verification.py` compares the two sides; `command.py` puts them
together.
"""
