"""Equal names that are said to be other people's: the words of every command that takes that.

A subject's name is a study's own: two studies can both have a 01. Without being told, a command
takes equal names for the same person, since that costs nobody's honesty.
"""

# Where names were equal: the way out, with the option that says so.
WAY_OUT = "; where only the names are equal and the people others, {}"

# What is printed and recorded then.
FILES_CHECKED = "equal names were taken for other people; file digests (SHA-256) were compared"
