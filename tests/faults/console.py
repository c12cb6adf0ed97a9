"""What the suites of this load tell while they run."""
import time

STARTED = time.monotonic()


def say(text):
    print(text, flush=True)


def progress(text):
    say('# [%4.0f s] %s' % (time.monotonic() - STARTED, text))
