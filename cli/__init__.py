"""The command line `slm`: each command parses its arguments, calls the library, prints the result.

`main` holds the entry point and `lazy` the group that imports commands when they are called;
`options` and `output` are shared by all commands. A sub-package holds the commands of one subject.
"""
