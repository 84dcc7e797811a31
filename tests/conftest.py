"""What holds for every test."""

import signal

# A shell starts background jobs with SIGINT ignored, and processes hand that on to those they start: then
# what is tested with Ctrl-C would not hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)
