"""kvctl: everything people do with a cluster from a shell.

`main` holds the command table and loads a command's module when it is called, so that a one-shot command
starts in well under 150 ms. stdout carries data only; hints and errors go to stderr. Exit codes are in
`exit_codes`, forms of output in `output`.
"""
