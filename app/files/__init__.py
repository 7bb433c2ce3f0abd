"""Photos in files -> captions in lines, tables and the files themselves: the verb `caption`."""
